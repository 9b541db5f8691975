"""Alerts and dashboard of deploy/: each alert is for what it is for and for nothing else, each panel shows something.

Most alerts are held against samples as our nodes would give them, by Prometheus' own tool. Those of nodes that die are
held against nodes that die: a cluster of processes, and a Prometheus that finds them by the scheduler, as in deploy/.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from roadstead.local import ClusterProcess
from roadstead.ports import free_ports
from tests.process.programs import running, until

DEPLOY = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = DEPLOY / "alerts.yml"
DASHBOARD = DEPLOY.parent / "grafana" / "roadstead.json"
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "be-alerted.md"
METRICS = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

pytestmark = pytest.mark.process


def rules() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def shown() -> list[tuple[str, str]]:
    """The panels of the dashboard: the title and what it asks for, by the minute."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [(panel["title"], one["expr"]) for panel in board["panels"] for one in panel.get("targets", [])]
    return [(title, expr.replace("$__rate_interval", "1m")) for title, expr in asked]


# ---------------------------------------------------------------- what is written

_ROW = re.compile(r"^\| `(Roadstead\w+)` \| (page|ticket) \|", flags=re.MULTILINE)


def test_the_how_to_says_of_each_alert_what_to_do() -> None:
    """And whether it pages; there is no other in it."""
    assert dict(_ROW.findall(PAGE.read_text(encoding="utf-8"))) == {
        name: rule["labels"]["severity"] for name, rule in rules().items()
    }


def test_only_metrics_that_there_are_are_asked_for() -> None:
    """A counter by its name with `_total`, a histogram by one of its series."""
    kinds = dict(re.findall(r"^\| `(roadstead_\w+)` \| (\w+) \|", METRICS.read_text(encoding="utf-8"), re.MULTILINE))
    exported = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count", "_sum"]}
    series = {name + ending for name, kind in kinds.items() for ending in exported[kind]}
    for asked in ([rule["expr"] for rule in rules().values()], [expr for _, expr in shown()]):
        named = {name for expr in asked for name in re.findall(r"roadstead_\w+", expr)}
        assert len(named) > 15
        assert named <= series


def test_the_dashboard_can_be_loaded_anywhere() -> None:
    """It names no data source but the one that is chosen; no id is there twice, no panel lies over another."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    (variable,) = board["templating"]["list"]
    assert (variable["type"], variable["name"]) == ("datasource", "prometheus")
    sources = [source for panel in board["panels"] for source in re.findall(r'"uid": "(.*?)"', json.dumps(panel))]
    assert set(sources) == {"${prometheus}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [panel["gridPos"] for panel in board["panels"]]
    cells = [(x + at["x"], y + at["y"]) for at in places for x in range(at["w"]) for y in range(at["h"])]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(panel["description"] for panel in board["panels"] if panel["type"] != "row")


# ---------------------------------------------------------------- held against samples

WELL = {
    **{
        f'up{{job="{role}", node="{role}-{number}"}}': "1+0x120"
        for role in ("access", "scheduler", "status")
        for number in (1, 2)
    },
    'up{job="im", node="im-1"}': "1+0x120",
    "roadstead_schedule_refusals_total": "0+0x120",
    "roadstead_schedule_panic": "0+0x120",
    "roadstead_schedule_bad_orders": "0+0x120",
    "roadstead_schedule_database_faults": "0+0x120",
    "roadstead_status_recovering": "0+0x120",
    "roadstead_status_degraded": "0+0x120",
    "roadstead_status_in_doubt": "0+0x120",
    "roadstead_status_registry_reachable": "1+0x120",
    'roadstead_consul_calls_total{call="wait", outcome="failed"}': "0+5x120",
    'roadstead_consul_calls_total{call="get", outcome="answered"}': "0+5x120",
    "roadstead_im_shards": "4+0x120",
    "roadstead_im_dropped_work": "0+0x120",
    "roadstead_im_push_behind": "0+0x120",
    "roadstead_im_outgoing": "10+0x120",
    "roadstead_im_search_lag": "100+0x120",
    "roadstead_im_unread_drift_total": "0+0x120",
    'roadstead_im_send_seconds_bucket{le="0.1"}': "0+500x120",
    'roadstead_im_send_seconds_bucket{le="1"}': "0+500x120",
    'roadstead_im_send_seconds_bucket{le="+Inf"}': "0+500x120",
    'roadstead_access_handshake_seconds_bucket{le="0.1"}': "0+50x120",
    'roadstead_access_handshake_seconds_bucket{le="5"}': "0+50x120",
    'roadstead_access_handshake_seconds_bucket{le="+Inf"}': "0+50x120",
    "roadstead_access_rpc_seconds_count": "0+500x120",
    'roadstead_access_command_errors_total{command="rpc", code="105"}': "0+1x120",
    'roadstead_access_command_errors_total{command="rpc", code="107"}': "0+500x120",
    'roadstead_access_refused_total{reason="full"}': "0+1x120",
    "roadstead_access_shed_total": "0+0x120",
    "roadstead_access_unpublished_total": "0+0x120",
    "roadstead_access_loop_lag_seconds": "0.02+0x120",
    'roadstead_http_errors_total{name="internal"}': "3+0x120",
    'roadstead_http_errors_total{name="not_found"}': "0+10x120",
}
"""Samples of ten minutes, one in five seconds, of a system that is well: there is some of everything."""

ILL: Mapping[str, tuple[dict[str, str], set[str]]] = {
    "all schedulers are gone": (
        {f'up{{job="scheduler", node="scheduler-{number}"}}': "1+0x110 stale" for number in (1, 2)},
        {"RoadsteadRoleGone", "RoadsteadNodeGone"},
    ),
    "a node does not answer": ({'up{job="access", node="access-2"}': "1+0x110 0+0x10"}, {"RoadsteadNodeGone"}),
    "a node was taken down ten minutes ago": ({'up{job="access", node="access-2"}': "1+0x20 stale"}, set()),
    "newcomers are refused": (
        {"roadstead_schedule_refusals_total": "0+0x60 1+1x60"},
        {"RoadsteadNewcomersRefused"},
    ),
    "a status node recovers for too long": (
        {"roadstead_status_recovering": "0+0x110 9+0x10"},
        {"RoadsteadStatusUnknown"},
    ),
    "a status node recovers": ({"roadstead_status_recovering": "0+0x110 9+0x2 0+0x10"}, set()),
    "nobody gives a status node a lease": ({"roadstead_status_degraded": "0+0x100 2+0x20"}, {"RoadsteadStatusUnknown"}),
    "only a majority does": ({"roadstead_status_degraded": "0+0x100 1+0x20"}, {"RoadsteadNoLeader"}),
    "most access nodes seem dead": ({"roadstead_status_in_doubt": "0+0x110 1+0x10"}, {"RoadsteadStatusInDoubt"}),
    "a process of the message services is gone": (
        {"roadstead_im_shards": "4+0x110 2+0x10"},
        {"RoadsteadShardsMissing"},
    ),
    "all are": ({"roadstead_im_shards": "4+0x110 stale"}, {"RoadsteadShardsMissing"}),
    "calls fail": (
        {'roadstead_access_command_errors_total{command="rpc", code="105"}': "0+20x120"},
        {"RoadsteadCallsFail"},
    ),
    "messages are refused": ({"roadstead_im_dropped_work": "0+0x100 5+0x20"}, {"RoadsteadMessagesDropped"}),
    "receipts are left out": ({"roadstead_im_dropped_work": "0+0x100 3+0x20"}, {"RoadsteadLessDropped"}),
    "sends are slow": ({'roadstead_im_send_seconds_bucket{le="0.1"}': "0+450x120"}, {"RoadsteadSendsSlow"}),
    "connects are slow": (
        {'roadstead_access_handshake_seconds_bucket{le="0.1"}': "0+45x120"},
        {"RoadsteadConnectsSlow"},
    ),
    "connections are refused": (
        {'roadstead_access_refused_total{reason="full"}': "0+10x120"},
        {"RoadsteadConnectsRefused"},
    ),
    "clients are shed": ({"roadstead_access_shed_total": "0+0x100 5+0x20"}, {"RoadsteadClientsShed"}),
    "sessions are not confirmed": ({"roadstead_access_unpublished_total": "0+5x120"}, {"RoadsteadSessionsUnconfirmed"}),
    "nodes go on being named": ({"roadstead_schedule_panic": "0+0x110 1+0x10"}, {"RoadsteadAccessNodesGone"}),
    "the registry is away": ({"roadstead_status_registry_reachable": "1+0x100 0+0x20"}, {"RoadsteadRegistryAway"}),
    "the registry was away for a moment": ({"roadstead_status_registry_reachable": "1+0x110 0+0x10"}, set()),
    "consul fails": (
        {'roadstead_consul_calls_total{call="get", outcome="failed"}': "0+5x120"},
        {"RoadsteadConsulFails"},
    ),
    "a node is late": ({"roadstead_access_loop_lag_seconds": "0.5+0x120"}, {"RoadsteadLoopLate"}),
    "pushes wait": ({"roadstead_im_push_behind": "5000+0x120"}, {"RoadsteadPushesBehind"}),
    "entries wait": ({"roadstead_im_outgoing": "5000+0x120"}, {"RoadsteadShardsApart"}),
    "search lags": ({"roadstead_im_search_lag": "50000+0x120"}, {"RoadsteadSearchBehind"}),
    "an order cannot be read": ({"roadstead_schedule_bad_orders": "0+0x110 1+0x10"}, {"RoadsteadBadOrder"}),
    "a database is broken": ({"roadstead_schedule_database_faults": "0+0x110 1+0x10"}, {"RoadsteadPlacesUnread"}),
    "a count was wrong": ({"roadstead_im_unread_drift_total": "0+0x110 1+0x10"}, {"RoadsteadCountWrong"}),
    "we have a defect": ({'roadstead_http_errors_total{name="internal"}': "3+0x110 4+0x10"}, {"RoadsteadDefect"}),
    "all is well": ({}, set()),
}
"""What is otherwise than it should be, and which alerts fire after ten minutes."""


def test_each_alert_fires_for_something_here() -> None:
    """So that none is only thought to."""
    assert set().union(*(names for _, names in ILL.values())) == set(rules())


@pytest.mark.spec("AR-3")
@pytest.mark.parametrize("what", ILL)
def test_what_is_wrong_is_told_and_nothing_else(what: str, tmp_path: Path) -> None:
    """Exactly the alerts that are expected fire."""
    changed, expected = ILL[what]
    series = [{"series": name, "values": values} for name, values in {**WELL, **changed}.items()]
    # One sample of each alert that fires, whatever its labels.
    firing = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"}) > bool 0', "eval_time": "10m"}
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "5s",
        "tests": [{"interval": "5s", "input_series": series, "promql_expr_test": [{**firing, "exp_samples": samples}]}],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    ran = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


# ---------------------------------------------------------------- held against nodes that die

COUNTS = {"status": 3, "access": 2, "im": 2, "scheduler": 2}
WAIT_MAX_S = 15
"""Whoever would have a rule wait for a minute has it wait for so long here. No rule waits for less than in deploy/."""
TOLD_WITHIN_S = 45.0
NOT_YET = {"Alerts", "Connects", "Calls that end with an error", "Connections that end", "Assignments", "Registry"}
"""Panels with a series that begins with the first client, or the first failure."""


class Alerts:
    """What a Prometheus that looks at a cluster says."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    async def ask(self, expr: str) -> list[Any]:
        """Return the samples of an instant vector."""
        async with self._http.get(f"{self._url}/api/v1/query", params={"query": expr}) as answer:
            found: list[Any] = (await answer.json())["data"]["result"]
        return found

    async def show(self, panels: list[tuple[str, str]]) -> bool:
        """Return whether all panels show something that can by now: a rate takes two samples."""
        return all([title in NOT_YET or await self.ask(expr) for title, expr in panels])

    async def are_scraped(self, nodes: int) -> bool:
        """Return whether so many nodes were scraped last."""
        return [int(one["value"][1]) for one in await self.ask("count(up == 1)")] == [nodes]

    async def are(self, expected: set[tuple[str, str]]) -> bool:
        """Return whether just these fire."""
        return await self.firing() == expected

    async def firing(self) -> set[tuple[str, str]]:
        """Return the alerts that fire, each with the node or role that it names."""
        async with self._http.get(f"{self._url}/api/v1/alerts") as answer:
            alerts = (await answer.json())["data"]["alerts"]
        return {
            (one["labels"]["alertname"], one["labels"].get("node") or one["labels"].get("job", ""))
            for one in alerts
            if one["state"] == "firing"
        }


def configured(folder: Path, scheduler: str, key: str) -> Path:
    """Write the sample of deploy/ down for this cluster, and with shorter intervals."""
    document = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in document["scrape_configs"]:
        for discovery in job["http_sd_configs"]:
            discovery["url"] = discovery["url"].replace("http://10.0.0.1:8700", scheduler)
            discovery["refresh_interval"] = "1s"
            discovery["authorization"] = {"type": "Bearer", "credentials": key}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    for group in groups["groups"]:
        for rule in group["rules"]:
            if rule.get("for") in ("30s", "1m", "5m"):
                rule["for"] = f"{WAIT_MAX_S}s"
    (folder / "alerts.yml").write_text(yaml.safe_dump(groups), encoding="utf-8")
    return folder / "prometheus.yml"


FAULTS: Sequence[tuple[Sequence[str], set[tuple[str, str]]]] = (
    (["status-3"], set()),
    (["im-2"], {("RoadsteadShardsMissing", "")}),
    (
        ["access-1", "access-2"],
        {("RoadsteadRoleGone", "access"), ("RoadsteadAccessNodesGone", "scheduler-1")}
        | {("RoadsteadAccessNodesGone", "scheduler-2")},
    ),
    (
        ["consul-1"],
        {(name, node) for name in ("RoadsteadRegistryAway", "RoadsteadNoLeader") for node in ("status-1", "status-2")}
        | {("RoadsteadConsulFails", node) for node in ("status-1", "status-2", "im-1", "scheduler-1", "scheduler-2")},
    ),
)
"""Who dies, one after the other, and what is told beside that they are gone."""


@pytest.mark.spec("AR-3")
async def test_a_fault_raises_the_alert_that_it_is_for(tmp_path: Path) -> None:
    """One after the other nodes die for good, until little is left: each time exactly what is wrong is told.

    That a status node died is for the morning: by the time that an alert would page, others answer for its users.
    """
    numbers = [flag for role, count in COUNTS.items() for flag in (f"--{role}", str(count))]
    cluster = ClusterProcess(tmp_path / "data", *numbers, "--no-tls", "--no-restart", "--log-level", "error")
    (port,) = free_ports([0])
    async with AsyncExitStack() as stack:
        stack.callback(cluster.stop)
        system = cluster.start()
        file = configured(tmp_path, system.scheduler, system.data.secrets().api_key)
        command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={tmp_path}/prometheus"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        await stack.enter_async_context(running(tmp_path / "prometheus.log", *command))
        alerts = Alerts(await stack.enter_async_context(aiohttp.ClientSession()), f"http://127.0.0.1:{port}")
        await until(partial(alerts.are_scraped, sum(COUNTS.values())), within_s=30.0)
        with suppress(TimeoutError):
            await until(partial(alerts.show, shown()), within_s=15.0)
        empty = {title for title, expr in shown() if not await alerts.ask(expr)}
        assert empty <= NOT_YET, "panels that show nothing"
        expected: set[tuple[str, str]] = set()
        for dead, more in FAULTS:
            for name in dead:
                cluster.kill(name)
            expected |= {("RoadsteadNodeGone", name) for name in dead if name != "consul-1"} | more
            with suppress(TimeoutError):  # then what is told instead is shown below
                await until(partial(alerts.are, expected), within_s=TOLD_WITHIN_S)
            assert await alerts.firing() == expected
