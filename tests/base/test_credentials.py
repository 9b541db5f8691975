"""API keys from a file: what a line says, and that a bad file changes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from base.credentials import Caller, Credentials, Role, required_of
from base.errors import ConfigError, PermissionDenied, Unauthenticated

ONE, TWO = "1" * 16, "2" * 43


def written(tmp_path: Path, text: str) -> Credentials:
    file = tmp_path / "api-keys"
    file.write_text(text)
    return Credentials(file=str(file), setting="security.api_keys_file")


def asking(key: str | None, **headers: str):
    given = {"Authorization": f"Bearer {key}"} if key is not None else {}
    return make_mocked_request("GET", "/", headers=given | headers)


def test_a_file_says_roles_and_names(tmp_path: Path) -> None:
    """Several keys of one role, too; without a file there are none."""
    made = written(tmp_path, f"# ours\nadmin {ONE} ann\nViewer {TWO}\nadmin {'3' * 16}\n")
    assert made.role_of(ONE) is None
    made.load()
    assert [made.role_of(key) for key in (ONE, TWO, "3" * 16, "4")] == [Role.ADMIN, Role.VIEWER, Role.ADMIN, None]
    assert (len(made.files), Credentials({"k": Role.ADMIN}).files, Credentials().role_of("")) == (1, (), None)


def test_who_asks_is_told_by_the_keys_fingerprint_and_names(tmp_path: Path) -> None:
    """The file's name is proven, what people call themselves is not; the key is never shown."""
    made = written(tmp_path, f"operator {ONE} deploys\nviewer {TWO}\n")
    made.load()
    fingerprint = hashlib.sha256(ONE.encode()).hexdigest()[:8]
    caller = made.caller(asking(ONE, **{"X-Operator": "ann\x00@host" + "!" * 99}))
    assert caller == Caller(Role.OPERATOR, fingerprint, "deploys", ("ann@host" + "!" * 99)[:64])
    assert made.who(asking(ONE)) == f"operator {fingerprint} (deploys)"
    assert made.who(asking(ONE, **{"X-Operator": "ann"})) == f"operator {fingerprint} (deploys as ann)"
    assert made.who(asking(TWO, **{"X-Operator": "ben"})).endswith(" (ben)")
    assert " (" not in made.who(asking(TWO))
    for nobody in (None, "unknown"):
        assert made.caller(asking(nobody)) is None
        with pytest.raises(Unauthenticated):
            made.who(asking(nobody))


def test_what_is_asked_for_is_kept_with_the_request(tmp_path: Path) -> None:
    """Also when it is refused: the audit tells what it would have taken."""
    made = written(tmp_path, f"viewer {ONE}\n")
    made.load()
    request = asking(ONE)
    assert required_of(request) is None
    made.require(request, Role.VIEWER)
    assert required_of(request) is Role.VIEWER
    with pytest.raises(PermissionDenied, match="needs the role operator, the key has viewer"):
        made.require(request, Role.OPERATOR)
    assert required_of(request) is Role.OPERATOR
    for nobody in (None, "unknown"):
        with pytest.raises(Unauthenticated):
            made.require(asking(nobody), Role.VIEWER)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{ONE}\n", "line 1: write it as ROLE KEY"),
        (f"root {ONE}\n", "roles: viewer, backend, operator, admin"),
        (f"admin {ONE} ann smith\n", "line 1: write it as ROLE KEY"),
        (f"\nadmin short\nviewer {ONE}\n", "line 2: the key has under 16"),
        (f"admin {ONE}\nviewer {ONE}\n", "line 2: the key is there twice"),
    ],
)
def test_a_bad_file_is_refused_and_the_former_keys_stay(tmp_path: Path, text: str, says: str) -> None:
    """No fault quotes a key."""
    made = written(tmp_path, f"admin {TWO}\n")
    made.load()
    written(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        made.load()
    assert ONE not in str(caught.value)
    assert (made.role_of(TWO), made.role_of(ONE)) == (Role.ADMIN, None)


def test_an_empty_file_refuses_everybody(tmp_path: Path) -> None:
    """Which is a way to close a node's API, and no fault."""
    made = written(tmp_path, f"admin {TWO}\n")
    made.load()
    written(tmp_path, "")
    made.load()
    assert made.role_of(TWO) is None
