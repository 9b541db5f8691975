"""Keys that several nodes share, and how they are changed: new ones are accepted everywhere before one is used first.

A `KeyList` has keys without names (peer keys, keys of user tokens), a `KeyRing` keys by their ids (keys of tickets).
Both are fixed, or a file that can be loaded again (`base.reload`); of both the first key is the one to use, and all are
accepted. So a key is changed in three steps, each at all nodes before the next: add the new one as the last, make it
the first, remove the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from base.core.jws import Verifier, can_sign
from base.errors import ConfigError
from base.reload import Loadable, lines_of

__all__ = ["KEY_CHARS_MIN", "KeyList", "KeyRing", "faults_of"]

KEY_CHARS_MIN = 16
"""A shorter key could be guessed. Those that are made for you have 43 characters."""


class _Keys(Loadable):
    def __init__(self, file: str, setting: str) -> None:
        super().__init__(*([file] if file else []))
        self._setting = setting

    def _lines(self) -> list[tuple[str, list[str]]]:
        if not self.files:
            raise ConfigError([f"{self._setting} must name a file"])
        return lines_of(self.files[0], self._setting)


class KeyList(_Keys):
    """Keys without names, the first of which is the one to use."""

    def __init__(self, file: str, *, setting: str, verifies: bool = False) -> None:
        """Nothing is read yet.

        Args:
            file: a key a line.
            setting: the name of the option, for messages.
            verifies: these are keys of signed texts (`base.core.jws`).
        """
        super().__init__(file, setting)
        self._verifies = verifies
        self.all: tuple[str, ...] = ()
        """Every key that is accepted."""

    @classmethod
    def of(cls, *keys: str) -> KeyList:
        """Return a fixed list."""
        assert keys
        made = cls("", setting="")
        made.all = keys
        return made

    @property
    def first(self) -> str:
        """The key to use."""
        return self.all[0]

    def _read(self) -> None:
        faults: list[str] = []
        keys: dict[str, None] = {}
        for where, words in self._lines():
            if len(words) != 1:
                faults.append(f"{where}: write one key a line")
                continue
            faults += faults_of(where, words[0], verifies=self._verifies)
            keys[words[0]] = None
        if not keys and not faults:
            faults.append(f"{self._setting}: {self.files[0]} has no key")
        if faults:
            raise ConfigError(faults)
        self.all = tuple(keys)


class KeyRing(_Keys):
    """Keys of signed texts (`base.core.jws`) by their ids: `kid` -> the key's text. All verify, and one signs."""

    def __init__(self, file: str, *, setting: str) -> None:
        """Nothing is read yet. `file`: lines of `KID KEY`; `setting`: the name of the option, for messages."""
        super().__init__(file, setting)
        self._must_sign = False
        self._users: list[Callable[[], None]] = []
        self.keys: Mapping[str, str] = {}

    @classmethod
    def of(cls, keys: Mapping[str, str]) -> KeyRing:
        """Return a fixed ring. Raises ConfigError when a key's text is malformed."""
        assert keys
        Verifier(keys)
        made = cls("", setting="the ticket keys")
        made.keys = dict(keys)
        return made

    @property
    def signing(self) -> tuple[str, str] | None:
        """The id and the text of the first key that can sign, None where all only verify."""
        return _signing(self.keys)

    def require_signing(self) -> None:
        """Never be without a key that signs. Raises ConfigError when there is none now."""
        self._must_sign = True
        if self.signing is None:
            raise ConfigError([self._signs_nothing()])

    def on_change(self, tell: Callable[[], None]) -> None:
        """Call `tell` now, and each time other keys are in force."""
        self._users.append(tell)
        tell()

    def _read(self) -> None:
        faults: list[str] = []
        keys: dict[str, str] = {}
        for where, words in self._lines():
            if len(words) != 2:
                faults.append(f"{where}: write it as KID KEY")
                continue
            kid, key = words
            faults += faults_of(where, key, verifies=True)
            if kid in keys:
                faults.append(f"{where}: the id {kid} is there twice")
            keys[kid] = key
        if not keys and not faults:
            faults.append(f"{self._setting}: {self.files[0]} has no key")
        elif self._must_sign and _signing(keys) is None:
            faults.append(self._signs_nothing())
        if faults:
            raise ConfigError(faults)
        self.keys = keys
        for tell in self._users:
            tell()

    def _signs_nothing(self) -> str:
        return f"{self._setting} must have a key that signs, not only public ones"


def faults_of(where: str, key: str, *, verifies: bool = False) -> list[str]:
    """Return what is wrong with a key that stands at `where`, none if nothing is. The key is never quoted."""
    if len(key) < KEY_CHARS_MIN:
        return [f"{where}: the key has under {KEY_CHARS_MIN} characters"]
    if not key.isascii() or not key.isprintable():
        return [f"{where}: the key has characters that are no printable ASCII"]
    if verifies:
        try:
            Verifier({}, default=key)
        except ConfigError as error:
            return [f"{where}: {fault}" for fault in error.errors]
    return []


def _signing(keys: Mapping[str, str]) -> tuple[str, str] | None:
    return next(((kid, key) for kid, key in keys.items() if can_sign(key)), None)
