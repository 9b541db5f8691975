"""The message services: store, order, fan out, sync.

Tour: `api` has the wire types, `ports` what the services need from a store. `sqlite` is the durable store:
`sqlite_log` its one writer, `core/recent` what the writer's indexes do not have yet; `memory` is its twin. `writer`
commits in groups, `pusher` tells online receivers, `service` ties them together.
"""
