"""The message services: store, order, fan out, sync.

Tour: `api` has the wire types, `ports` what the services need from a store, `sqlite` and `memory` are the stores,
`writer` commits in groups, `pusher` tells online receivers, `service` ties them together.
"""
