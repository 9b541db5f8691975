"""Is the node of this container ready? Exit code 0 if its `/readyz` says so.

Where it listens is in its configuration: the file that ROADSTEAD_CONFIG names, and the environment. It is asked every
few seconds, so this reads no more of it than that, and imports nothing of ours.
"""  # noqa: INP001 - a program by itself

from __future__ import annotations

import os
import ssl
import sys
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

TIMEOUT_S = 2.5


def setting(document: dict[str, Any], section: str, name: str) -> str:
    """Return a setting as text, empty if it is nowhere."""
    found = document.get(section, {}).get(name, "")
    return os.environ.get(f"ROADSTEAD_{section}__{name}".upper(), str(found))


def main() -> int:
    """Ask the node. Returns the exit code."""
    try:
        document = tomllib.loads(Path(os.environ["ROADSTEAD_CONFIG"]).read_text(encoding="utf-8"))
        ca, port = setting(document, "security", "tls_ca"), setting(document, "node", "port")
        tls = ssl.create_default_context(cafile=ca) if ca else None
        url = f"{'https' if tls else 'http'}://localhost:{port}/readyz"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=tls) as answer:  # noqa: S310 - of this very container
            return 0 if answer.status == 200 else 1
    except (KeyError, ValueError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
