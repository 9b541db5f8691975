"""The Python client: a thin wrapper over the stock SDK, which finds its access node by itself and stays connected.

`client` is what an application uses, with the services' `methods`; `dialer` decides where to connect, `connection` is
one SDK object for one connection, `channel` how far each channel was read, which outlives connections.

`view` is what there is to show, whatever way it comes: a pure core, with `conversation` for one conversation and `rows`
for what a window shows of it. `viewer` carries out what it asks for.
"""

from roadstead.client.channel import Incoming, Position
from roadstead.client.client import Client
from roadstead.client.rows import Changed, Row, Shown
from roadstead.client.view import Listed, Redrawn, Told, ViewModel

__all__ = ["Changed", "Client", "Incoming", "Listed", "Position", "Redrawn", "Row", "Shown", "Told", "ViewModel"]
