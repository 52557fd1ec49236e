"""A real Prometheus: each query of the board has an answer, each alert fires when it should and no sooner."""

import json
import math
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from bootstrap import free_port
from installed import PACKAGE, SLUG, Installed, install
from raw import MODERN, PATIENCE, SERVE_HTTP, Connection, Json, Server, headers_of, message, post
from rendering import render
from stops import outcome

pytestmark = [pytest.mark.install, pytest.mark.timeout(300)]

CASES = Path(__file__).with_name("alert_cases.yaml")
RANGE = "5s"  # of what Grafana calls $__rate_interval: some scrapes

PROBES = '''"""Calls that end as they are told to."""

import time

import anyio

from ..tooling import tool


@tool()
async def crash() -> str:
    """Fail."""
    raise RuntimeError


@tool(timeout_seconds=0.1)
def run_late() -> str:
    """Take longer than the call may."""
    time.sleep(1)
    return "late"


@tool(cost=1000)
async def pay() -> str:
    """Cost all that a caller has."""
    return "done"


@tool()
async def wait() -> str:
    """Take a while."""
    await anyio.sleep(0.3)
    return "done"
'''


class Upstream(ThreadingHTTPServer):
    """Exchange rates, with every third answer an error, or all of them while it `fails`."""

    daemon_threads = True
    fails = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Rates)
        self.numbers = count()


class _Rates(BaseHTTPRequestHandler):
    server: Upstream

    def do_GET(self) -> None:
        body = b'{"rate": 1.1}'
        self.send_response(503 if self.server.fails or next(self.server.numbers) % 3 == 0 else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Prometheus:
    """Its HTTP API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_ready(self) -> bool:
        """Whether it answers."""
        try:
            with urlopen(f"{self._url}/-/ready", timeout=PATIENCE):
                return True
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer; an error of Prometheus's is an exception."""
        query = "&".join(f"{name.strip('_')}={quote(value)}" for name, value in parameters.items())
        with urlopen(f"{self._url}/api/v1/{path}?{query}", timeout=PATIENCE) as response:
            return json.load(response)["data"]

    def values(self, query: str) -> list[float]:
        """What a query finds now: numbers alone."""
        found = [float(each["value"][1]) for each in self.get("query", query=query)["result"]]
        return [value for value in found if math.isfinite(value)]

    def alerts(self) -> list[Json]:
        """What is pending or fires."""
        found: list[Json] = self.get("alerts")["alerts"]
        return found


class Scene(NamedTuple):
    """What runs together, while callers of every kind call."""

    project: Path
    prometheus: Prometheus
    http: Server
    stdio: Server
    redis: "subprocess.Popen[str]"
    upstream: Upstream


def until(is_so: Callable[[], object], what: str) -> None:
    """Wait for what tells nobody when it is so."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def program(name: str, package: str) -> str:
    """Where it is; without it the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on PATH; `apt-get install {package}` installs it")
    return path


@contextmanager
def running(*command: str, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that is killed at the end; what it says is in a file beside its data."""
    with (folder / f"{Path(command[0]).name}.log").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, text=True, cwd=folder)
    with process:
        try:
            yield process
        finally:
            process.kill()


def call(port: int, key: str, tool: str, **arguments: object) -> str:
    """How a call of a tool ends."""
    sent = message(MODERN, 1, "tools/call", {"name": tool, "arguments": arguments})
    with Connection(port) as connection:
        answer = connection.ask(post(headers_of(sent, MODERN) | {"Authorization": f"Bearer {key}"}, sent))
    return outcome(answer.messages[0])


def call_in_every_way(port: int, key: str, poor_key: str) -> set[str]:
    """How some calls end, of which each is of its own kind."""
    with ThreadPoolExecutor(20) as pool:
        crowd = [pool.submit(call, port, key, "wait") for _ in range(20)]
    return {
        *(each.result() for each in crowd),
        call(port, key, "get_part", sku="BRG-6204"),
        call(port, key, "get_part", sku="ABC-0000"),
        call(port, key, "get_part", sku=1),
        call(port, key, "convert_price", sku="BRG-6204", currency="USD"),
        call(port, key, "place_order", sku="BRG-6204", quantity=1, idempotency_key="order-0001"),
        call(port, key, "crash"),
        call(port, key, "run_late"),
        call(port, "made-up", "get_part", sku="BRG-6204"),
        call(port, poor_key, "pay"),
        call(port, poor_key, "pay"),
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project with the probes dropped in."""
    path = render(tmp_path_factory.mktemp("monitoring"), project_name="Spare Parts")
    (path / "src" / PACKAGE / "tools" / "probes.py").write_text(PROBES, encoding="utf-8")
    return install(path)


@pytest.fixture(scope="module")
def scene(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A server over HTTP and one over stdio, what they need, and a Prometheus with the project's rules."""
    prometheus, redis_server = program("prometheus", "prometheus"), program("redis-server", "redis-server")
    folder = tmp_path_factory.mktemp("prometheus")
    redis_port, http_port, stdio_port, port = (free_port() for _ in range(4))
    keys = folder / "keys.json"
    key, poor_key = installed.new_key(keys), installed.new_key(keys)
    with ExitStack() as stack:
        redis = stack.enter_context(running(redis_server, "--port", str(redis_port), "--save", "", folder=folder))
        upstream = stack.enter_context(Upstream())
        stack.callback(upstream.shutdown)
        threading.Thread(target=upstream.serve_forever, args=(0.05,)).start()
        settings = {
            "MCP_AUTH_MODE": "api_key",
            "MCP_AUTH_FAILURES_PER_MINUTE": "1000",
            "MCP_API_KEYS_FILE": str(keys),
            "MCP_RATE_LIMIT_STORE": f"redis://127.0.0.1:{redis_port}/0",
            "MCP_RATE_LIMIT_BURST": "1000",
            "MCP_RATE_LIMIT_PER_MINUTE": "20000",
            "MCP_MAX_CONCURRENT_CALLS": "16",
            "MCP_UPSTREAM_BASE_URL": f"http://127.0.0.1:{upstream.server_address[1]}",
        }
        http = Server([installed.command, *SERVE_HTTP], settings | {"MCP_METRICS_PORT": str(http_port)})
        stdio = Server([installed.command], {"MCP_METRICS_PORT": str(stdio_port)})
        for server in (http, stdio):
            stack.enter_context(server)
        stdio.wait_for("started")
        stdio.send(message(MODERN, 1, "tools/call", {"name": "get_part", "arguments": {"sku": "BRG-6204"}}))
        assert outcome(json.loads(stdio.receive())) == "ok"
        assert call_in_every_way(http.port, key, poor_key) == {
            *("ok", "failed", "invalid_arguments", "forbidden", "unauthenticated", "rate_limited"),
            *("overloaded", "internal", "timeout"),
        }
        stack.enter_context(_calling(lambda: call_in_every_way(http.port, key, poor_key)))
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(installed.path / "monitoring" / "alerts.yaml")],
            "scrape_configs": [
                {
                    "job_name": SLUG,
                    "static_configs": [{"targets": [f"127.0.0.1:{each}" for each in (http_port, stdio_port)]}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
        options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address=127.0.0.1:{port}")
        stack.enter_context(running(prometheus, *options, folder=folder))
        api = Prometheus(port)
        until(api.is_ready, "Prometheus does not start")
        until(lambda: api.values("min(sum_over_time(up[1m])) > 3"), "nothing is scraped")
        yield Scene(installed.path, api, http, stdio, redis, upstream)


@contextmanager
def _calling(make_calls: Callable[[], object]) -> Iterator[None]:
    """Call again and again; what a server that was killed answers is of no interest."""
    over = threading.Event()

    def calling() -> None:
        while not over.is_set():
            try:
                make_calls()
            except (OSError, EOFError):
                over.wait(0.1)

    thread = threading.Thread(target=calling)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def board_of(project: Path) -> Json:
    """Its board, as Grafana would read it."""
    board: Json = json.loads((project / "monitoring" / "grafana-dashboard.json").read_text(encoding="utf-8"))
    return board


def queries(board: Json) -> dict[str, str]:
    """What the panels ask, with values for the variables."""
    filled = {"$job": SLUG, "$instance": ".*", "$__rate_interval": RANGE}
    found = {}
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for variable, value in filled.items():
                query = query.replace(variable, value)
            found[f"{panel['title']} ({target['refId']})"] = query
    return found


def silent(prometheus: Prometheus, board: Json, seconds: float) -> set[str]:
    """The panels that show nothing, however often they are asked in this time."""
    waiting, deadline = queries(board), time.monotonic() + seconds
    while waiting and time.monotonic() < deadline:
        waiting = {title: query for title, query in waiting.items() if not prometheus.values(query)}
        time.sleep(0.1 if waiting else 0)
    return set(waiting)


# The board


def test_every_query_of_the_board_has_an_answer(scene: Scene) -> None:
    """None is wrong, and each finds numbers where there is traffic of every kind."""
    assert silent(scene.prometheus, board_of(scene.project), PATIENCE) == set()


@pytest.mark.parametrize(
    ("right", "wrong", "panel"),
    [
        ("mcp_server_readiness", "mcp_server_ready", "Readiness (A)"),
        ("sum by (tool, le)", "sum by (tool)", "p95 by tool (A)"),
        ("duration_seconds_count{outcome!~", "duration_seconds_total{outcome!~", "Refused and other outcomes (A)"),
        ('outcome=~\\"internal|', 'result=~\\"internal|', "Failed calls by outcome (A)"),
    ],
)
def test_query_that_is_wrong_shows(scene: Scene, right: str, wrong: str, panel: str) -> None:
    """That is what the test above would see."""
    text = json.dumps(board_of(scene.project))
    assert right in text
    assert panel in silent(scene.prometheus, json.loads(text.replace(right, wrong)), 1)


def test_variables_of_the_board_have_values(scene: Scene) -> None:
    """The job's name, and both instances."""
    variables = [each for each in board_of(scene.project)["templating"]["list"] if each["type"] == "query"]
    found = {}
    for variable in variables:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
        assert asked
        found[variable["name"]] = scene.prometheus.get(
            f"label/{asked[2]}/values", match__=asked[1].replace("$job", SLUG)
        )
    assert found["job"] == [SLUG]
    assert len(found["instance"]) == 2


def test_all_that_is_measured_is_on_the_board(scene: Scene) -> None:
    """No metric is left to be found by chance."""
    names = [name for name in scene.prometheus.get("label/__name__/values") if name.startswith("mcp_")]
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in names}
    assert len(families) > 12
    shown = " ".join(queries(board_of(scene.project)).values())
    assert {family for family in families if family not in shown} == set()


# The alerts


def test_rules_are_accepted(installed: Installed) -> None:
    """By Prometheus's own check."""
    rules = installed.path / "monitoring" / "alerts.yaml"
    done = subprocess.run(
        [program("promtool", "prometheus"), "check", "rules", "--lint-fatal", rules],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should(installed: Installed, tmp_path: Path) -> None:
    """Each of the cases."""
    shutil.copy(CASES, tmp_path)
    shutil.copy(installed.path / "monitoring" / "alerts.yaml", tmp_path)
    line = [program("promtool", "prometheus"), "test", "rules", CASES.name]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_cases(rendered: Path) -> None:
    """One in which it fires, at its severity, and one in which it nearly does."""
    groups = yaml.safe_load((rendered / "monitoring" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    alerts = {
        (rule["alert"], rule["labels"]["severity"]) for group in groups for rule in group["rules"] if "alert" in rule
    }
    fires, spares = set(), set()
    for case in yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]:
        for asked in case["promql_expr_test"]:
            named = re.search(r'alertname=~?"([^"]+)"', asked["expr"])
            assert named
            firing = [each["labels"] for each in asked["exp_samples"] if 'alertstate="firing"' in each["labels"]]
            fires |= {
                (name, severity)
                for name, severity in alerts
                for labels in firing
                if f'"{name}"' in labels and f'"{severity}"' in labels
            }
            spares |= set(named[1].split("|")) if not firing else set()
    assert fires == alerts
    assert spares == {name for name, _ in alerts}


def test_rules_are_evaluated(scene: Scene) -> None:
    """Each of them, without an error."""

    def rules() -> list[Json]:
        return [rule for group in scene.prometheus.get("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), "a rule has not been evaluated")
    assert [rule for rule in rules() if rule["health"] != "ok" or rule.get("lastError")] == []
    for recorded in (rule["name"] for rule in rules() if rule["type"] == "recording"):
        until(lambda name=recorded: scene.prometheus.values(name), f"{recorded} has no value")


def test_bad_day(scene: Scene) -> None:
    """Redis, the service behind the tools and one replica go, then the other one: board and alerts show it."""
    prometheus = scene.prometheus
    scene.upstream.fails = True
    scene.redis.kill()
    scene.stdio.process.kill()
    shown = queries(board_of(scene.project))

    def is_shown(title: str) -> Callable[[], bool]:
        return lambda: max(prometheus.values(shown[f"{title} (A)"]), default=0) > 0

    for title in ("Limits that were not checked", "Failing dependencies", "Breakers open", "Breakers", "Retries"):
        until(is_shown(title), f"{title}: shows nothing")
    expected = {"McpReplicaDown", "McpRateLimitStoreDown", "McpUpstreamBreakerOpen", "McpOverloaded"}
    until(lambda: expected <= names(prometheus.alerts()), "an alert is missing")
    seen = prometheus.alerts()
    scene.http.process.kill()
    until(lambda: "McpServerDown" in names(prometheus.alerts()), "McpServerDown is missing")
    for alert in seen + prometheus.alerts():
        texts = alert["annotations"]["summary"] + alert["annotations"]["description"]
        assert not re.search(r"<|  |NaN|\b(of|service|replica|dependency|tool) [.:]", texts), texts
    down = {each["labels"]["dependency"] for each in seen if each["labels"]["alertname"] == "McpDependencyDown"}
    assert down <= {"event_bus"}, "what has an alert of its own has no other"


def names(alerts: list[Json]) -> set[str]:
    """Of alerts."""
    return {each["labels"]["alertname"] for each in alerts}
