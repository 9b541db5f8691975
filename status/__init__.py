"""The status cluster: who is online, on which device, behind which access node.

Tour: `core/partitions` says which node owns a user, `core/sessions` what an owner knows, `core/publisher` how an access
node keeps its owners up to date. `service` is a status node, `leader` the one that writes the table. Other services
import `api` (wire types) and `client` (lookups and publishing) only.
"""
