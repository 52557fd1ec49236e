"""The board and the alert rules in `monitoring/`: queries ask for what this server exports, alerts are explained.

Your own queries are held to the same; what else exports is in `OTHERS`.
"""

import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from {{ cookiecutter.package_name }}.errors import CANCELLED, OK, CallError
from {{ cookiecutter.package_name }}.outbound.exchange import RETRIED_STATUSES, Reason

from .conftest import ROOT
from .faulty_upstream import Answer, FaultyUpstream
from .harness import HTTP, SERVE_HTTP, Json, Peer, Server
from .promql import Series, labels_of
from .test_metrics import read

BOARD: Json = json.loads((ROOT / "monitoring" / "grafana-dashboard.json").read_text(encoding="utf-8"))
GROUPS: list[Json] = yaml.safe_load((ROOT / "monitoring" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
RULES: list[Json] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = [variable for variable in BOARD["templating"]["list"] if variable["type"] == "query"]
TARGET: dict[str, frozenset[str] | None] = {"job": None, "instance": None}
"""The labels that Prometheus adds to whatever it reads."""
OTHERS = {"up": Series(is_counter=False, labels=TARGET)}
"""What is asked for, but not exported by this server."""


def codes(kind: type[CallError]) -> Iterator[str]:
    """Of this error, and of all that are one."""
    for each in kind.__subclasses__():
        yield each.code
        yield from codes(each)


# Labels with values from a closed set, of which one server does not show all.
CLOSED = {
    "outcome": frozenset({*codes(CallError), OK.code, CANCELLED.code}),
    "result": frozenset({*get_args(Reason), *(f"status_{status}" for status in RETRIED_STATUSES), "ok", "cancelled"}),
}


@pytest.fixture(scope="module")
def known(source: Path) -> dict[str, Series]:
    """What is exported by a server that was asked for something of each kind, and what is recorded of it."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        nobody = found.getsockname()[1]
    with FaultyUpstream() as upstream:
        upstream.play(Answer(503), Answer(json={}))
        settings = {
            "MCP_METRICS_PORT": "0",
            "MCP_RATE_LIMIT_STORE": f"redis://127.0.0.1:{nobody}/0",
            "MCP_UPSTREAM_BASE_URL": upstream.base_url,
        }
        with Server(*SERVE_HTTP, source=source, settings=settings) as server:
            peer = Peer(HTTP[0], server)
            with peer.http:
                tools = {tool["name"] for tool in peer.request("tools/list")["result"]["tools"]}
                assert peer.call("probe_ask")["result"]["isError"] is False
                for method in ("resources/list", "prompts/list"):
                    peer.request(method)
            text = read(server)
    series = dict(OTHERS)
    closed = CLOSED | {"tool": frozenset({*tools, ""})}
    for family in text_string_to_metric_families(text):
        for name in {sample.name for sample in family.samples}:
            seen = [sample.labels for sample in family.samples if sample.name == name]
            values = {label: closed.get(label, frozenset(each[label] for each in seen)) for label in seen[0]}
            series[name] = Series(is_counter=family.type in ("counter", "histogram"), labels={**TARGET, **values})
    for rule in RULES:
        if "record" in rule:
            labels = labels_of(rule["expr"], series)
            series[rule["record"]] = Series(is_counter=False, labels=dict.fromkeys(labels))
    return series


def problem_of(query: str, known: dict[str, Series]) -> str | None:
    """Why a query never has a right answer."""
    try:
        labels_of(query, known)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="`process_*` is Linux's")
def test_queries_ask_for_what_is_exported(known: dict[str, Series]) -> None:
    """Names, labels and values, in panels, variables and rules: with one that is wrong a query is silent for ever."""
    queries = {f"{panel['title']}: {target['expr']}": target["expr"] for panel in PANELS for target in panel["targets"]}
    queries |= {f"{rule.get('alert', 'record')}: {rule['expr']}": rule["expr"] for rule in RULES}
    for variable in VARIABLES:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert asked is not None, variable["name"]
        queries[f"variable {variable['name']}"] = f"count by ({asked[2]}) ({asked[1]})"
    problems = {where: problem for where, query in queries.items() if (problem := problem_of(query, known))}
    assert problems == {}


SMALL = OTHERS | {
    "calls_total": Series(is_counter=True, labels=TARGET | {"outcome": frozenset({"ok", "internal"})}),
    "seconds_bucket": Series(is_counter=True, labels=TARGET | {"tool": None, "le": frozenset({"0.25", "+Inf"})}),
    "threads": Series(is_counter=False, labels=TARGET),
}


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ('sum by (job) (rate(calls_total{outcome=~"ok|int.+"}[5m])) > 0.5', {"job"}),
        ("(sum(increase(calls_total[$__rate_interval])) or vector(0)) / sum(rate(calls_total[1h]))", set()),
        ("histogram_quantile(0.95, sum by (tool, le) (rate(seconds_bucket[5m])))", {"tool"}),
        ("up == 0 or on (job) max by (job) (avg_over_time(threads[5m])) unless on (job) threads", {"job", "instance"}),
        ('label_replace(up, "to", "$1", "job", "(.+)")', {"job", "instance", "to"}),
        ("sum by (job) (up) * on (job) group_left (instance) topk(2, threads)", {"job", "instance"}),
    ],
)
def test_query_that_is_right(query: str, labels: set[str]) -> None:
    """What is left of the labels."""
    assert labels_of(query, SMALL) == labels


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sum(rate(seconds_total[5m]))", "seconds_total: nobody exports it"),
        ("sum by (name) (threads)", "sum by ['name']: of what has the labels ['instance', 'job']"),
        ('threads{tool="x"}', "threads: has no label tool"),
        ('rate(calls_total{outcome=~"ok|intern"}[5m])', "outcome is never intern"),
        ('rate(seconds_bucket{le="0.2"}[5m])', "le is never 0.2"),
        ("rate(threads[5m])", "threads is a gauge"),
        ("max_over_time(calls_total[5m])", "calls_total is a counter"),
        ("calls_total > 0", "is a counter, which only has a rate"),
        ("histogram_quantile(0.9, sum by (tool) (rate(seconds_bucket[5m])))", "needs the label le"),
        ("sum by (job) (up) / sum by (instance) (up)", "nothing fits"),
        ("up == 0 and on (job, tool) threads", "not labels of both sides"),
        ('label_replace(up, "to", "$1", "from", "(.+)")', "there is no label from"),
        ("summ(up)", "summ"),
        ("sum(up", "unclosed left parenthesis"),
    ],
)
def test_query_that_is_wrong(query: str, problem: str) -> None:
    """Each kind of mistake is found."""
    with pytest.raises(ValueError, match=re.escape(problem)):
        labels_of(query, SMALL)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_alert_is_explained(alert: Json) -> None:
    """How bad it is, what it means, and the place in the guide that says what to do."""
    assert alert["labels"]["severity"] in ("critical", "warning")
    texts: dict[str, str] = alert["annotations"]
    assert all(texts[name].endswith(".") for name in ("summary", "description"))
    page, _, anchor = texts["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.skipif(sys.platform != "linux", reason="`process_*` is Linux's")
def test_texts_of_alerts_show_labels_that_there_are(known: dict[str, Series]) -> None:
    """A label that the query does not keep would be a gap in the text."""
    for alert in ALERTS:
        shown = set(re.findall(r"\$labels\.(\w+)", json.dumps(alert["annotations"])))
        assert shown <= labels_of(alert["expr"], known), alert["alert"]


def test_board_fits_together() -> None:
    """Every panel says what it shows and asks the data source that is chosen; every variable is declared."""
    grafanas = {"__all", "__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps([PANELS, VARIABLES])))
    assert used - grafanas == {variable["name"] for variable in BOARD["templating"]["list"]}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    asked: list[dict[str, Any]] = [*PANELS, *VARIABLES]
    assert all(each["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for each in asked)
    assert all(panel["description"].endswith(".") and panel["targets"] for panel in PANELS)
    cells = [
        (place["x"] + x, place["y"] + y)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(place["w"])
        for y in range(place["h"])
    ]
    assert len(set(cells)) == len(cells), "panels overlap"
    assert all(x < 24 for x, _ in cells)
