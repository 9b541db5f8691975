"""The access server: holds the clients' connections.

Tour: `core/protocol` is the Centrifugo client protocol as structs, `core/session` one client's state machine,
`core/inbox` who gets which push in which order, `core/replay` which tickets were used. `websocket` is the transport,
`service` the node. Other services import `api` only.
"""
