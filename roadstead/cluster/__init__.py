"""A whole cluster on one machine: Consul and one process a node, as in production, under one supervisor.

For trying, developing and testing what needs many processes. `plan` says which processes there are and on which ports,
`files` writes what they are started with, `child` is one process, `supervisor` keeps all of them, `control` is how
other terminals talk to it, `view` makes one log of all of theirs.
"""
