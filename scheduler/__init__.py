"""The access scheduler: tells each client which access nodes to try, and signs the ticket that lets it in.

Tour: `core/assignment` decides (a pure function of a snapshot, a request and a seed), `service` follows the access
nodes' reports and serves `GET /v1/access`. Access nodes import `api` (the ticket) and `client` (its verification)
only.
"""
