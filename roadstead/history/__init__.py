"""The checker: what clients of a messaging system saw is recorded, and judged against what the system promises.

The way of Jepsen and Maelstrom: drive the system from outside, break it, write down every call, every answer and
everything that reached a device, then search the record for what cannot be. Nothing is asked of the system's insides
but its logs, read at the end through its own interface. So the same checker judges the embedded system and a cluster.

Tour: `events` is what is written down, `recorder` writes it and reads it back, `index` indexes it, `spans` knows what
certainly came before what, `conversations` and `devices` hold the invariants I1 to I13, `check` runs them all, and
`report` is the outcome. A verdict without violations says how much each invariant looked at: silence is no proof.

How it is known that the checker sees: tests/roadstead/history breaks a small system in each way that is known to
break real ones, and demands that the right invariant says so.
"""
