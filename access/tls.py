"""The certificate of the clients' port, loaded anew when its files change: a renewal needs no restart.

The context stays the same one, so that connections that are open are not touched, and new ones are served with what
was loaded last. A pair that does not fit together, or cannot be read, is told in the log and changes nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from base.errors import ConfigError
from base.log import logger

__all__ = ["Certificate"]


class Certificate:
    """A chain and its key, from two PEM files."""

    def __init__(self, chain: str, key: str, *, node: str) -> None:
        """Nothing is read yet."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._chain = Path(chain)
        self._key = Path(key)
        self._loaded: tuple[int, int] | None = None
        self._log = logger(node=node)

    def load(self) -> None:
        """Load the files. Raises ConfigError when that cannot be; what was loaded before stays."""
        try:
            stamp = self._stamp()
            # Tried on a context of its own first: a pair that does not fit would leave the one in use half changed.
            # With a wrong password, since without any OpenSSL asks for that of an encrypted key on the terminal.
            for context in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self.context):
                context.load_cert_chain(self._chain, self._key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError([f"access.tls_certificate {self._chain} with {self._key}: {error}"]) from error
        self._loaded = stamp

    async def follow(self, interval_s: float) -> None:
        """Load the files whenever they changed, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                if self._stamp() == self._loaded:
                    continue
                self.load()
            except (OSError, ConfigError) as error:
                self._log.error("certificate_not_loaded", error=str(error))
            else:
                self._log.info("certificate_loaded", chain=str(self._chain))

    def _stamp(self) -> tuple[int, int]:
        return self._chain.stat().st_mtime_ns, self._key.stat().st_mtime_ns
