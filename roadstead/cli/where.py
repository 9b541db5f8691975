"""Which running system a command is about, and how it is asked: by a data folder, or by a node's configuration.

Where a system is run by `roadstead up` or `roadstead cluster up`, its data folder says where it is and has its keys.
Elsewhere the configuration of any of its nodes does: the registry that it names knows the nodes, and the files that it
names have the keys and the CA. Which nodes there are is looked up once, and again when one of them does not answer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from base.errors import ConfigError, PeerUnavailable
from base.keys import KeyList
from roadstead.api import call_api, trust_ca
from roadstead.cli.common import data_option, load_config, operator
from roadstead.config import Config
from roadstead.deployment import DataFolder
from roadstead.systems import System, of_config, of_data
from scheduler.service import SERVICE as SCHEDULER
from status.api import SERVICE as STATUS

__all__ = ["Where", "scheduler_call", "status_call", "system_options"]

ANSWER_S = 1.0
DEADLINE_S = 5.0
USER_KEYS = "security.user_keys_file"

F = TypeVar("F", bound=Callable[..., Any])


class Where:
    """See the module. Methods raise ConfigError for what the operator must mend."""

    def __init__(self, data: DataFolder, config: Config | None = None) -> None:
        """`config`: of any node of the system; None: it runs from the data folder."""
        self._data = data
        self._config = config
        self._urls: dict[str, dict[str, str]] = {}
        self._api_key = ""

    def open(self, *services: str) -> AbstractAsyncContextManager[System]:
        """Find the system: the nodes of some services, of all if none is named. The registry is open meanwhile."""
        if self._config is not None:
            return of_config(self._config, *services)
        return of_data(self._data, *services)

    async def urls(self, service: str) -> dict[str, str]:
        """Return where each node of a service is, by name. Raises PeerUnavailable when there is none."""
        known = self._urls.get(service)
        if known is None:
            async with self.open(service) as system:
                known = {node.name: node.url for node in system.of(service)}
                failure, registry_url = system.registry_failure, system.registry_url
                self._api_key = system.api_key
            if not known:
                why = f"the registry at {registry_url} cannot be read: {failure}" if failure else "none is registered"
                raise PeerUnavailable(f"no {service} node is known: {why}")
            self._urls[service] = known
        return known

    async def answering(self, service: str) -> str:
        """Return the URL of the first of a service's nodes that answers. Raises PeerUnavailable."""
        urls = await self.urls(service)
        if len(urls) == 1:
            return next(iter(urls.values()))  # it will tell by itself why it does not answer
        for url in urls.values():
            with suppress(PeerUnavailable):
                await call_api("GET", f"{url}/healthz", deadline_s=ANSWER_S)
                return url
        self._urls.pop(service)
        raise PeerUnavailable(f"none of {', '.join(urls)} answers")

    async def call(
        self, service: str, method: str, path: str, body: Any = None, *, params: dict[str, str] | None = None
    ) -> Any:
        """Ask any node of a service, in the operator's name. Raises what `call_api` raises."""
        return await self.ask(await self.answering(service), method, path, body, params=params)

    async def ask(
        self,
        url: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: dict[str, str] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Any:
        """Ask one node, in the operator's name. Raises what `call_api` raises."""
        key = await self.api_key()
        try:
            return await call_api(
                method,
                f"{url}{path}",
                credential=key,
                params=params,
                body=body,
                operator=operator(),
                deadline_s=deadline_s,
            )
        except PeerUnavailable:
            self._urls.clear()  # it may be elsewhere now
            raise

    async def api_key(self) -> str:
        """Return the API key that allows most, of those that are there."""
        if not self._api_key:
            async with self.open(SCHEDULER) as system:
                self._api_key = system.api_key
        return self._api_key

    def user_key(self) -> str:
        """Return the key that user tokens are signed with."""
        if self._config is None:
            return self._data.secrets().user_key
        file = self._config.security.user_keys_file
        if not file:
            raise ConfigError([f"{USER_KEYS} must name a file: tokens are signed with its first key"])
        keys = KeyList(file, setting=USER_KEYS, verifies=True)
        keys.load()
        return keys.first

    def folder(self) -> Path:
        """Return where what a command remembers of this system is kept."""
        return self._data.path if self._config is None else Path(click.get_app_dir("roadstead"))


async def status_call(where: Where, method: str, path: str, body: Any = None) -> Any:
    """Ask a status node. Raises what `call_api` raises."""
    return await where.call(STATUS, method, path, body)


async def scheduler_call(
    where: Where, method: str, path: str, body: Any = None, *, params: dict[str, str] | None = None
) -> Any:
    """Ask a scheduler. Raises what `call_api` raises."""
    return await where.call(SCHEDULER, method, path, body, params=params)


def system_options(command: F) -> F:
    """Add `--data`, or else `--config` and `--set`, passed on as a `Where`."""

    @click.pass_context
    @wraps(command)
    def located(
        context: click.Context,
        /,
        *args: Any,
        data: DataFolder,
        node_file: Path | None,
        node_flags: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        given = {name: context.get_parameter_source(name) for name in ("data", "node_file")}
        if set(given.values()) == {ParameterSource.COMMANDLINE}:
            raise click.UsageError("--data and --config name two systems; give one of them")
        if node_flags and node_file is None:
            raise click.UsageError("--set changes the settings that --config names; give both")
        # What is said here counts, then the environment's data folder, then its configuration.
        is_data = given["data"] is not ParameterSource.DEFAULT and given["node_file"] is not ParameterSource.COMMANDLINE
        if node_file is None or is_data:
            return command(*args, where=Where(data), **rest)
        config = load_config(node_file, node_flags)
        if not config.node.name and given["node_file"] is not ParameterSource.COMMANDLINE:
            return command(*args, where=Where(data), **rest)  # the environment has the settings of an `up`
        if config.security.has_tls:
            trust_ca(Path(config.security.tls_ca))  # here and not where it is used: a command may run several loops
        return command(*args, where=Where(data, config), **rest)

    setting = click.option("--set", "node_flags", multiple=True, metavar="SECTION.FIELD=VALUE", help="With --config.")
    node = click.option(
        "--config",
        "node_file",
        type=click.Path(path_type=Path),
        envvar="ROADSTEAD_CONFIG",
        help="Instead: TOML file of any node of the system. [env: ROADSTEAD_CONFIG]",
    )
    return data_option(node(setting(cast("F", located))))
