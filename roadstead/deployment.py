"""A data folder: its secrets, its lock, and where its running system listens.

im-1, im-2 ...   messages and timelines of a local cluster (`roadstead cluster up`), a folder a process
cluster          what else such a cluster has, its CA among it
api-key          the API key with the role admin, for `curl` and backends
peer-key         the key of peer streams, for processes that join from elsewhere
ticket-key       the key of tickets and its name, for access nodes that join from elsewhere
secrets.json     every secret of this deployment, made at the first start; mode 0600
endpoints.json   where the running system listens, rewritten at each start
lock             held by the running process
registry.db      tables, locks, documents (SQLite)
messages.db      messages and timelines (SQLite)
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from base.errors import ConfigError, PeerUnavailable
from base.ids import new_secret

__all__ = ["DataFolder", "Endpoints", "Secrets"]

T = TypeVar("T")


class Secrets(msgspec.Struct, frozen=True):
    """Every secret of a deployment. `user_key` signs user tokens, `ticket_key` tickets, `peer_key` opens peer
    streams.
    """

    api_key: str
    user_key: str
    peer_key: str
    ticket_kid: str
    ticket_key: str


class Endpoints(msgspec.Struct, frozen=True):
    """Base URLs of the running system's nodes, by node id."""

    pid: int
    scheduler: dict[str, str]
    status: dict[str, str]
    access: dict[str, str]
    im: dict[str, str]
    registry: dict[str, str] = {}
    clients: dict[str, str] = {}
    """Where clients reach each access node."""
    consul: dict[str, str] = {}
    """Where the registry of a local cluster is."""
    pids: dict[str, int] = {}
    """The processes of a local cluster; `up` is one."""

    def nodes(self) -> dict[str, str]:
        """Return all nodes' URLs by id."""
        return {**self.scheduler, **self.im, **self.access, **self.status, **self.registry}


class DataFolder:
    """One deployment's folder. Methods raise ConfigError for what the operator must mend."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @property
    def registry_db(self) -> Path:
        """Path of the registry's database."""
        return self.path / "registry.db"

    @property
    def messages_db(self) -> Path:
        """Path of the message store's database."""
        return self.path / "messages.db"

    @property
    def search_db(self) -> Path:
        """Path of the search index, which is made anew from the messages if it is missing."""
        return self.path / "messages-search.db"

    @property
    def ca(self) -> Path:
        """Path of the CA that the nodes of a local cluster have their certificates from; `up` has none."""
        return self.path / "cluster" / "ca" / "ca.pem"

    def claim(self) -> None:
        """Make the folder and lock it for this process."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise ConfigError([f"the data folder {self.path} cannot be written: {error.strerror}"]) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self.release()
            raise ConfigError(
                [f"the data folder {self.path} is in use by process {holder}; stop it, or choose another with --data"]
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def is_free(self) -> bool:
        """Return whether no process has the folder."""
        try:
            with (self.path / "lock").open("r", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def make_secrets(self) -> Secrets:
        """Return the deployment's secrets, drawing them at the first start."""
        if (self.path / "secrets.json").exists():
            secrets = self.secrets()
        else:
            secrets = Secrets(new_secret(), new_secret(), new_secret(), "k1", new_secret())
            self._write("secrets.json", msgspec.json.format(msgspec.json.encode(secrets)))
        files = {
            "api-key": secrets.api_key,
            "peer-key": secrets.peer_key,
            "ticket-key": f"{secrets.ticket_kid} {secrets.ticket_key}",
        }
        for name, text in files.items():
            if not (self.path / name).exists():
                self._write(name, text.encode() + b"\n")
        return secrets

    def secrets(self) -> Secrets:
        """Return the deployment's secrets. Raises PeerUnavailable when the folder was never used."""
        return self._read("secrets.json", Secrets)

    def publish_endpoints(self, endpoints: Endpoints) -> None:
        """Tell commands where the system listens."""
        self._write("endpoints.json", msgspec.json.format(msgspec.json.encode(endpoints)))

    def endpoints(self) -> Endpoints:
        """Return where the system listens, or listened last. Raises PeerUnavailable when it never ran."""
        return self._read("endpoints.json", Endpoints)

    def _read(self, name: str, kind: type[T]) -> T:
        file = self.path / name
        try:
            return msgspec.json.decode(file.read_bytes(), type=kind)
        except FileNotFoundError as error:
            raise PeerUnavailable(
                f"nothing runs from the data folder {self.path}; start it with `roadstead up`, or name it with --data"
            ) from error
        except OSError as error:
            raise ConfigError([f"{file} cannot be read: {error.strerror}"]) from error
        except msgspec.MsgspecError as error:
            raise ConfigError([f"{file} is damaged: {error}"]) from error

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole: a reader, or a crash, never sees half of it."""
        partial = self.path / f".{name}.partial"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / name)
        except OSError as error:
            raise ConfigError([f"{self.path / name} cannot be written: {error.strerror}"]) from error
