"""The Python client: a thin wrapper over the stock SDK, which finds its access node by itself and stays connected.

`client` is what an application uses, `dialer` decides where to connect, `connection` is one SDK object for one
connection, `channel` how far each channel was read, which outlives connections.
"""

from roadstead.client.channel import Incoming, Position
from roadstead.client.client import Client

__all__ = ["Client", "Incoming", "Position"]
