"""A client, as an access node knows it, from its arrival to its end. Implements `Member`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from access.core.session import Session
from access.ports import Connection

if TYPE_CHECKING:
    from access.core.inbox import Reader
    from access.identity import Identity
    from status.api import Opened

__all__ = ["Client"]


class Client:
    """There may be many thousands, nearly all idle: nothing is here that an idle one does not need."""

    __slots__ = (
        "address",
        "connection",
        "expires_at",
        "id",
        "identity",
        "info",
        "is_sent_on",
        "opened",
        "place",
        "reader",
        "session",
        "user",
    )

    def __init__(self, client_id: str, connection: Connection, session: Session, *, address: str) -> None:
        self.id = client_id
        self.address = address
        self.connection = connection
        self.session = session
        self.user = ""
        """Who it is, once it is let in."""
        self.info = b""
        self.identity: Identity | None = None
        """What its credentials said, while it is on its way in."""
        self.opened: Opened | None = None
        """What the status backend was told of it."""
        self.is_sent_on = False
        """Whether it was told to go to another node."""
        self.reader: Reader[Client] | None = None
        """Its place in its inbox."""
        self.expires_at = 0
        """When its credentials have to be renewed, in seconds since the Unix epoch; 0: never."""
        self.place = 0
        """Its place in the ping rounds."""

    @property
    def is_let_in(self) -> bool:
        """Whether it has been let in. Stays so to its end."""
        return self.opened is not None and self.identity is None
