"""The registry on Consul: for systems of many processes on many machines.

`registry` is the adapter and keeps the port's promises, `lives` is what ends when its process is silent, `client` asks
an agent and names what fails, `transport` carries a request to it, `codec` translates. Why each is as it is:
docs/adr/0024-registry-on-consul.md.
"""

from base.registry.consul.registry import ConsulRegistry

__all__ = ["ConsulRegistry"]
