"""The message services: store, order, fan out, sync.

Tour: `core/model` says what conversations, entries and timelines are, `core/commands` what can be asked of them,
`core/ledger` decides what comes of it. `store` keeps it (SQLite, and a twin in memory), `search` finds in it.

    api, client             wire types; how access nodes use the services
    methods                 what clients and backends can call: one table
    admitting               who may call just now
    writing, writer         changes: arguments to commands, commands in groups to the store
    reading, counting       what is read; how much is unread
    pusher, followed        online receivers are told
    trimming, workers       timelines are kept short; ids of messages
    http, service           the HTTP interface; the node
"""
