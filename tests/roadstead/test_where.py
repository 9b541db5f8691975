"""Which system a command is about: by its options, the environment, a folder or a registry; and whom it asks there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.table import Table

from base.clock import SimClock
from base.errors import ConfigError, PeerUnavailable, StoreUnavailable, Unauthenticated
from base.registry.memory import MemoryRegistry
from base.trust import Trust
from roadstead.cli import where as module
from roadstead.cli.common import load_config, print_table
from roadstead.cli.where import Where, system_options
from roadstead.deployment import DataFolder, Endpoints
from roadstead.registries import PeerRegistry
from roadstead.systems import Node, System

NODES = [
    Node("im-1", "im", "http://away", None),
    Node("im-2", "im", "http://up", None),
    Node("im-3", "im", "http://up-too", None),
    Node("status-1", "status", "http://away", None),
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked; only those that are up answer."""
    urls: list[str] = []

    async def call(_method: str, url: str, **options: Any) -> Mapping[str, Any]:
        urls.append(url)
        if not url.startswith("http://up"):
            raise PeerUnavailable(url)
        return options

    monkeypatch.setattr(module, "call_api", call)
    return urls


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> System:
    """The system that every folder has."""
    trust = Trust.of_key("key")
    system = System("operator", trust, "the-key", MemoryRegistry(SimClock()), "http://registry", [*NODES], None, [])

    @asynccontextmanager
    async def of_data(_data: DataFolder, *_services: str) -> AsyncIterator[System]:
        yield system

    monkeypatch.setattr(module, "of_data", of_data)
    return system


@pytest.mark.usefixtures("found")
async def test_who_is_away_is_passed_over(asked: list[str], tmp_path: Path) -> None:
    """In the order in which they are known; and it is asked in the operator's name, with the system's key."""
    options = await Where(DataFolder(tmp_path)).call("im", "GET", "/x", params={"a": "b"})
    assert asked == ["http://away/healthz", "http://up/healthz", "http://up/x"]
    assert (options["credential"], options["params"]) == ("the-key", {"a": "b"})
    assert "@" in options["operator"]


@pytest.mark.usefixtures("found")
async def test_the_only_one_is_not_asked_first(asked: list[str], tmp_path: Path) -> None:
    """It tells by itself what is wrong."""
    with pytest.raises(PeerUnavailable, match="http://away/x"):
        await Where(DataFolder(tmp_path)).call("status", "GET", "/x")
    assert asked == ["http://away/x"]


async def test_nodes_are_looked_up_again_when_none_of_them_answers(
    asked: list[str], found: System, tmp_path: Path
) -> None:
    """Who was started again may be elsewhere; before that they are looked up once."""
    where = Where(DataFolder(tmp_path))
    await where.urls("im")
    found.nodes = [Node(f"im-{number}", "im", "http://gone", None) for number in (1, 2)]
    assert len(await where.urls("im")) == 3
    where = Where(DataFolder(tmp_path))
    with pytest.raises(PeerUnavailable, match="none of im-1, im-2 answers"):
        await where.call("im", "GET", "/x")
    found.nodes = [*NODES]
    await where.call("im", "GET", "/x")
    assert asked[-1] == "http://up/x"


async def test_where_nobody_is_known_it_says_why(found: System, tmp_path: Path) -> None:
    """None is registered, or the registry cannot be read."""
    found.nodes = []
    with pytest.raises(PeerUnavailable, match="no im node is known: none is registered"):
        await Where(DataFolder(tmp_path)).urls("im")
    found.registry_failure = StoreUnavailable("it is away")
    with pytest.raises(PeerUnavailable, match="the registry at http://registry cannot be read: it is away"):
        await Where(DataFolder(tmp_path)).urls("im")


def test_the_users_key_is_the_folders_or_the_configurations(tmp_path: Path) -> None:
    """The first one of a node's file, which is the newest."""
    data = DataFolder(tmp_path)
    secrets = data.make_secrets()
    assert Where(data).user_key() == secrets.user_key
    assert Where(data).folder() == tmp_path
    file = tmp_path / "user-keys"
    file.write_text(f"{'n' * 43}\n{'o' * 43}\n")
    node = load_config(None, ("node.name=scheduler-1", f"security.user_keys_file={file}"))
    assert Where(data, node).user_key() == "n" * 43
    assert Where(data, node).folder() != tmp_path
    with pytest.raises(ConfigError, match="user_keys_file must name a file"):
        Where(data, load_config(None, ("node.name=access-1",))).user_key()


async def test_a_registry_that_refuses_this_node_is_a_failure_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is; the nodes of the folder are known all the same."""

    async def refuses(_registry: PeerRegistry) -> None:
        raise Unauthenticated("another peer key")

    monkeypatch.setattr(PeerRegistry, "probe", refuses)
    data = DataFolder(tmp_path)
    data.make_secrets()
    urls = {"im-1": "http://127.0.0.1:9"}
    data.publish_endpoints(Endpoints(1, {}, {}, {}, urls, registry={"registry-1": "http://127.0.0.1:9"}))
    assert await Where(data).urls("im") == urls
    with pytest.raises(PeerUnavailable, match="another peer key"):
        await Where(data).urls("status")


def test_a_table_shows_what_others_call_themselves_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line a row, however long that is."""
    table = Table("device", "at", box=None, pad_edge=False)
    table.add_row("[/x]", f"http://[fd00::1]:8730/{'a' * 300}")
    print_table(table)
    assert capsys.readouterr().out.splitlines()[1] == f"[/x]    http://[fd00::1]:8730/{'a' * 300}"


@click.command()
@system_options
def which(where: Where) -> None:
    """Tell which system it is about."""
    click.echo(where.open())


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with options and an environment; return what it says, or what is wrong."""
    (tmp_path / "node.toml").write_text('[node]\nname = "access-1"\n')
    (tmp_path / "up.toml").write_text("[up]\naccess_nodes = 2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "of_data", lambda data: f"the system of {data.path}")
    monkeypatch.setattr(module, "of_config", lambda config: f"the system of {config.node.name}")

    def run(*options: str, **env: str) -> str:
        ran = CliRunner().invoke(which, options, env=env)
        return ran.output.strip().splitlines()[-1]

    return run


def test_options_go_before_the_environment_and_folders_before_configurations(says: Any) -> None:
    """Two systems at once are refused; settings of an `up`, which has no name, are no system."""
    assert says() == "the system of roadstead-data"
    assert says("--data", "other") == "the system of other"
    assert says("--config", "node.toml") == "the system of access-1"
    assert says("--config", "node.toml", "--set", "node.name=access-2") == "the system of access-2"
    assert says(ROADSTEAD_CONFIG="node.toml") == "the system of access-1"
    assert says(ROADSTEAD_CONFIG="up.toml") == "the system of roadstead-data"
    assert says(ROADSTEAD_CONFIG="node.toml", ROADSTEAD_DATA="other") == "the system of other"
    assert says("--config", "node.toml", ROADSTEAD_DATA="other") == "the system of access-1"
    assert says("--data", "other", ROADSTEAD_CONFIG="node.toml") == "the system of other"
    assert "give both" in says("--data", "other", "--set", "node.name=access-2")
    assert "name two systems" in says("--data", "other", "--config", "node.toml")
