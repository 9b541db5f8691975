"""What every service stands on: clock, ids, errors, configuration, logs, metrics, registry, peer streams.

Nothing here knows a domain noun (no user, message or session) and nothing here imports a service. A thing
moves in when three packages need it.

Read in this order: `errors` (the tree and the codes), `clock`, `core.lease` (the reference core that every
other core copies), `registry` (the port to the cluster's memory), `peer` (streams between services),
`service` (how a process starts, drains and stops).
"""
