"""The access server: holds the clients' connections.

From the socket inwards:

    listener, admission                   the clients' port: who may connect at all
    websocket                             a WebSocket connection; its codec: `core/websocket`, `handshake`, `deflate`
    transports, streaming, polling, ...   the same over plain HTTP
    clients, connecting, identity         sessions (`core/session`), who is let in, pings (`core/pings`)
    commands, brokers                     what a client's commands do; which broker serves a channel
    inboxes, conversations, presence      the system's own channels: `inbox:`, `conv:`, `presence:`
    channels, channel_*, mesh             the application's channels, over all access nodes
    fanout, `core/outgoing`               one push to many clients: encoded once, written in turns
    drain, moves, redirect                emptying a node; moves that a scheduler orders; telling a client to go
    admin                                 what operators ask and order
    service                               the node

`core/protocol` is the Centrifugo client protocol as values, `core/encoding` its JSON and protobuf. Other
services import `api` only.
"""
