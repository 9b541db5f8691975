"""The cluster's memory, behind one port: who is alive, small shared documents, who leads.

`ports` is the contract; `memory` and `sqlite` are adapters for a cluster within one process, `remote` lets further
processes use the registry of one, which `node` serves. The contract suite in `tests/contract` runs on each. Whoever
needs to follow a key or a service uses `follow`, whatever the adapter.
"""

from base.core.registry import Entry, ServiceInstance
from base.registry.follow import follow, follow_services
from base.registry.ports import Registry, View

__all__ = ["Entry", "Registry", "ServiceInstance", "View", "follow", "follow_services"]
