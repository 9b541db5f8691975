"""The simulator: whole clusters in one process, on simulated time and a simulated network.

It runs the real cores, and the logic of the shells around them, through thousands of histories that no real cluster
would show in years: messages lost, late, doubled and out of order, partitions in one or both directions, crashes,
stalls, clocks that drift. Checkers look at the whole cluster after every event. A history is a function of its seed:
what was found once is found again by the same command.

Tour: `faults` says how bad the weather is, `dice` is the only source of chance, `network` decides which messages
arrive when, `host` is what an actor sees of its machine, `world` runs them all, `report` is what is told
afterwards. `leases` is the first history and the pattern of those to come; `lease_hosts` has its actors.

Run it: `python -m roadstead.sim --history leases --seed 0 --count 1000`.
"""
