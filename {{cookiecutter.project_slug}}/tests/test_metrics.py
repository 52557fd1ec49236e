"""Metrics: what Prometheus reads is what the log says, on a port of its own that bad input does not reach through."""

import json
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from http.client import HTTPConnection
from importlib import metadata
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from {{ cookiecutter.package_name }} import NAME
from {{ cookiecutter.package_name }}.auth.api_keys import new_key
from {{ cookiecutter.package_name }}.measures import HTTP_BUCKETS, OPERATION_BUCKETS, Histogram

from .conftest import Start, StartPeer
from .harness import (
    HTTP,
    PACKAGE,
    PATIENCE,
    SERVE_HTTP,
    STDIO,
    Peer,
    Server,
    Way,
    environment,
    rest_of,
    run_command,
    until,
)
from .redis_server import running_redis
from .test_outcomes import TABLE

BOTH = [STDIO[1], HTTP[0]]  # each transport, each era
DURATION = "mcp_server_operation_duration_seconds"
IN_FLIGHT = "mcp_server_operations_in_flight"
SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


def url_of(server: Server) -> str:
    """Where its metrics are."""
    return str(server.wait_for("metrics_listening")["url"])


def read(server: Server) -> str:
    """Its metrics, as text."""
    return get(url_of(server))


def get(url: str) -> str:
    """What is there."""
    address = httpx2.URL(url)
    with closing(HTTPConnection(address.host, address.port, timeout=PATIENCE)) as connection:
        connection.request("GET", address.path)
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return answer.read().decode()


def scrape(server: Server) -> list[Sample]:
    """Its metrics, as Prometheus understands them."""
    return [sample for family in text_string_to_metric_families(read(server)) for sample in family.samples]


def total(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum of what has this name and these labels."""
    found = [each.value for each in samples if each.name == name and labels.items() <= each.labels.items()]
    assert found, (name, labels)
    return sum(found)


def assert_counted_as_logged(server: Server) -> Counter[tuple[str, str, str]]:
    """Metrics and log name the same requests, as often; returns how often by method, tool and outcome."""
    names = ("method", "tool", "outcome")
    counted: Counter[tuple[str, str, str]] = Counter()
    for each in scrape(server):
        if each.name == f"{DURATION}_count":
            method, tool, outcome = (each.labels[name] for name in names)
            counted[method, tool, outcome] += int(each.value)

    def logged() -> Counter[tuple[str, str, str]]:
        lines = [line for line in server.log if line["event"] == "request"]
        return Counter((line["method"], line["tool"] or "", line["outcome"]) for line in lines)

    until(lambda: logged().total() >= counted.total())  # lines are gathered for some milliseconds
    assert counted == logged()
    return counted


def send_no_json(peer: Peer) -> None:
    """What cannot be read as a request has an answer, a line and a count too."""
    if peer.way.transport == "http":
        assert peer.post(b"{", {"Mcp-Method": "x"}).status_code == 400
    else:
        peer.server.send(b"{")
        assert peer.server.receive()["error"]["code"] == -32700


# What is counted


def test_histogram_takes_a_bound_into_its_own_bucket() -> None:
    """`le` is less or equal; what exceeds the last bound is counted too."""
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.2, 1.0, 7.0):
        histogram.observe(seconds)
    assert histogram.counts == [2, 2, 1]
    assert histogram.sum == pytest.approx(8.35)
    for buckets in (HTTP_BUCKETS, OPERATION_BUCKETS):
        assert list(buckets) == sorted(set(buckets))


def test_every_outcome_is_counted_once(start_peer: StartPeer, way: Way) -> None:
    """Each call has one count, under the words of its log line, whatever became of it."""
    peer = start_peer(way, metrics_port="0")
    for code, (tool, arguments, _) in TABLE.items():
        assert peer.error(tool, **arguments)["code"] == code
    for number in range(3):
        assert peer.call("probe_list")["id"] > number
    peer.call("no_such_tool")
    peer.request("prompts/get", {"name": "no_such_prompt"})
    peer.request("no/such/method")
    peer.request("tools/list")
    send_no_json(peer)
    counted = assert_counted_as_logged(peer.server)
    assert {key: counted[key] for key in counted if key[0] == "tools/call"} == {
        **{("tools/call", tool, code): 1 for code, (tool, _, _) in TABLE.items()},
        ("tools/call", "probe_list", "ok"): 3,
        ("tools/call", "", "unknown_tool"): 1,
    }
    assert counted["prompts/get", "", "not_found"] == counted["tools/list", "", "ok"] == 1
    assert counted["unknown", "", "invalid_request"] == 2


def test_durations_fall_into_the_conventions_buckets(start_peer: StartPeer, way: Way) -> None:
    """A call of 0.2 s is in every bucket from 0.5 s on, and in none up to 0.1 s."""
    peer = start_peer(way, metrics_port="0")
    peer.call("probe_waits", seconds=0.2)
    samples = [each for each in scrape(peer.server) if each.labels.get("tool") == "probe_waits"]
    buckets = {float(each.labels["le"]): each.value for each in samples if each.name == f"{DURATION}_bucket"}
    assert list(buckets) == [*OPERATION_BUCKETS, float("inf")]
    assert [buckets[bound] for bound in (0.01, 0.1, 2, float("inf"))] == [0, 0, 1, 1]
    assert 0.19 <= total(samples, f"{DURATION}_sum") < 2


def test_what_is_refused_at_the_http_edge_is_counted(start: Start, tmp_path: Path) -> None:
    """401, 403, 429 and what is no request of MCP at all: each once, though no guard has seen it."""
    file = tmp_path / "keys.json"
    key = new_key(file, "tests", ["other"], None)
    settings = {"MCP_METRICS_PORT": "0", "MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file)}
    server = start(*SERVE_HTTP, settings=settings | {"MCP_AUTH_FAILURES_PER_MINUTE": "1"})
    peer = Peer(HTTP[0], server)
    with peer.http:
        call = peer.message("tools/call", {"name": "probe_privileged", "arguments": {}})

        def status(body: bytes | None = None, **headers: str) -> int:
            return peer.post(call if body is None else body, headers).status_code

        assert (status(), status(Authorization=f"Bearer {key}")) == (401, 403)
        assert (status(Authorization="Bearer made-up"), status(Authorization="Bearer made-up")) == (401, 429)
        known = {"Authorization": f"Bearer {key}"}
        assert (status(b"no JSON", **known), status(b" " * 2_000_000, **known)) == (400, 413)
        assert status(b"{}", Host="elsewhere") == 421
        address = httpx2.URL(peer.url)
        with socket.create_connection((address.host, address.port or 0), PATIENCE) as connection:
            connection.sendall(b"this is no HTTP\r\n\r\n")
            assert rest_of(connection).startswith(b"HTTP/1.1 400 ")
    assert assert_counted_as_logged(server) == {
        ("tools/call", "", "unauthenticated"): 2,
        ("tools/call", "probe_privileged", "forbidden"): 1,
        ("tools/call", "", "rate_limited"): 1,
        ("unknown", "", "invalid_request"): 4,
    }


def test_sessions_are_counted_too(start_peer: StartPeer) -> None:
    """What the SDK's own HTTP application serves and refuses is no exception."""
    peer = start_peer(HTTP[1], metrics_port="0", http_sessions="stateful")
    hello = {"protocolVersion": HTTP[1].version, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    session = {"Mcp-Session-Id": peer.post(peer.message("initialize", hello)).headers["mcp-session-id"]}
    call = peer.message("tools/call", {"name": "probe_list", "arguments": {}})
    assert peer.post(call, session).status_code == 200
    assert peer.post(call, {"Mcp-Session-Id": "made-up"}).status_code == 404
    counted = assert_counted_as_logged(peer.server)
    assert (counted["tools/call", "probe_list", "ok"], counted["unknown", "", "invalid_request"]) == (1, 1)


def test_names_that_callers_make_up_are_no_labels(start_peer: StartPeer) -> None:
    """After 10,000 names of tools, methods, prompts and resources there is not one series more than after four."""
    peer = start_peer(STDIO[0], metrics_port="0")

    def ask(times: int) -> None:
        name = f"name-{uuid4()}"
        for method, params in (
            ("tools/call", {"name": name, "arguments": {}}),
            ("prompts/get", {"name": name}),
            ("resources/read", {"uri": f"probe://{name}"}),
            (name, {}),
        ):
            messages = [
                peer.message(f"{method}{number}" if method == name else method, params) for number in range(times)
            ]
            for number, message in enumerate(messages):
                if "name" in params:
                    message["params"]["name"] = f"{name}-{number}"
            peer.server.send(b"\n".join(json.dumps(message).encode() for message in messages))
            assert all("error" in peer.server.receive() for _ in range(times))

    def series() -> set[tuple[str, frozenset[tuple[str, str]]]]:
        return {(each.name, frozenset(each.labels.items())) for each in scrape(peer.server)}

    ask(1)
    before = series()
    for _ in range(25):
        ask(100)
    assert series() == before
    assert total(scrape(peer.server), f"{DURATION}_count") == 4 + 10_000
    assert "name-" not in read(peer.server)


def test_calls_in_flight(start_peer: StartPeer, way: Way) -> None:
    """A call is in flight from its beginning to its end, and none is left behind."""
    peer = start_peer(way, metrics_port="0")
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(peer.call, "probe_waits", seconds=1.0)]
        if way.transport == "http":  # over stdio this peer waits for its answer
            calls.append(pool.submit(peer.call, "probe_waits", seconds=1.0))
        until(lambda: sum(event["event"] == "waiting" for event in peer.server.log) == len(calls))
        assert total(scrape(peer.server), IN_FLIGHT, method="tools/call") == len(calls)
        assert all("result" in call.result() for call in calls)
    assert total(scrape(peer.server), IN_FLIGHT) == 0


# What is known of the process


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_event_loop_that_is_held_up_shows(start_peer: StartPeer, way: Way) -> None:
    """One stall of half a second is one value beyond a quarter of it."""
    peer = start_peer(way, metrics_port="0")
    lag = "mcp_server_event_loop_lag_seconds"
    until(lambda: total(scrape(peer.server), f"{lag}_count") >= 2)
    before = scrape(peer.server)
    peer.call("probe_stalls", seconds=0.8)
    until(lambda: total(scrape(peer.server), f"{lag}_count") > total(before, f"{lag}_count"))
    after = scrape(peer.server)
    late = [total(each, f"{lag}_count") - total(each, f"{lag}_bucket", le="0.25") for each in (before, after)]
    assert late[1] - late[0] == 1
    assert total(after, f"{lag}_sum") - total(before, f"{lag}_sum") > 0.25


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_abandoned_thread_shows_while_it_lasts(start_peer: StartPeer, way: Way) -> None:
    """A `def` tool that outlives its call is counted, and not for ever."""
    peer = start_peer(way, metrics_port="0")
    assert peer.error("probe_blocks")["code"] == "timeout"
    assert total(scrape(peer.server), "mcp_server_abandoned_threads") == 1
    peer.server.wait_for("abandoned_thread_ended")
    assert total(scrape(peer.server), "mcp_server_abandoned_threads") == 0


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_dependency_that_fails_shows(start_peer: StartPeer, way: Way) -> None:
    """The check of each is asked, over stdio too, where nobody probes."""
    peer = start_peer(way, metrics_port="0")

    def shown() -> tuple[float, dict[str, float]]:
        samples = scrape(peer.server)
        states = {each.labels["status"]: each.value for each in samples if each.name == "mcp_server_readiness"}
        store = total(samples, "mcp_server_dependency_up", dependency="serving.open_store")
        return store, {status: value for status, value in states.items() if value}

    assert shown() == (1, {"ok": 1})
    peer.call("probe_store", health="failing")
    until(lambda: shown() == (0, {"unavailable": 1}))  # what a check has found counts for a second


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_limits_that_cannot_be_checked_are_counted(start_peer: StartPeer, way: Way, tmp_path: Path) -> None:
    """Each call that goes unlimited, as Redis is away, is an error of the store, and the server is degraded."""
    with running_redis(tmp_path) as redis:
        peer = start_peer(way, metrics_port="0", rate_limit_store=redis.url)
        errors = "mcp_server_rate_limit_store_errors_total"
        peer.call("probe_list")
        assert total(scrape(peer.server), errors) == 0
        redis.kill()
        peer.server.wait_for("rate_limit_store_down")
        for _ in range(3):
            assert "result" in peer.call("probe_list")
        until(lambda: total(scrape(peer.server), "mcp_server_readiness", status="degraded") == 1)
        samples = scrape(peer.server)
        assert total(samples, errors) == 3
        assert total(samples, "mcp_server_dependency_up", dependency="rate_limit_store") == 0


def test_what_runs_is_named(start_peer: StartPeer, way: Way) -> None:
    """Versions, and what the operating system knows of the process."""
    samples = scrape(start_peer(way, metrics_port="0").server)
    versions = {"version": metadata.version(NAME), "python_version": platform.python_version()}
    assert total(samples, "mcp_server_build_info", **versions) == 1
    if sys.platform == "linux":
        assert total(samples, "process_resident_memory_bytes") > 10_000_000


MEASURED = '''"""Tools whose dependencies have measures, and are slow to close."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
import structlog

from ..measures import Measure
from ..settings import Settings
from ..tooling import Depends, tool


class Queue:
    def measures(self) -> Iterator[Measure]:
        for queue, jobs in (("mail", 3), ("print", 4)):
            yield Measure("queue_jobs", "Jobs that wait.", "gauge", {"queue": queue}, jobs)
        yield Measure("queue_done_total", "Jobs that are done.", "counter", {}, 7)


class Broken:
    def measures(self) -> Iterator[Measure]:
        yield Measure("broken", "Works.", "gauge", {}, 1)
        raise RuntimeError("hunter22")


@asynccontextmanager
async def open_broken(settings: Settings) -> AsyncIterator[Broken]:
    yield Broken()


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Queue]:
    yield Queue()
    structlog.get_logger().info("closing")
    await anyio.sleep(1)


@tool()
async def queue_up(
    broken: Annotated[Broken, Depends(open_broken)], queue: Annotated[Queue, Depends(open_queue)]
) -> str:
    """Queue up."""
    return "done"
'''


@pytest.fixture
def measured(source: Path, tmp_path: Path) -> Path:
    """A copy of the source with this tool in it too."""
    copy = tmp_path / "measured"
    shutil.copytree(source, copy)
    (copy / PACKAGE / "tools" / "queues.py").write_text(MEASURED, encoding="utf-8")
    return copy


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_dependencies_add_their_own(start: Start, way: Way, measured: Path) -> None:
    """One of them that fails is logged, without its text, and costs nobody else's measures."""
    arguments = SERVE_HTTP if way.transport == "http" else ()
    server = start(*arguments, settings={"MCP_METRICS_PORT": "0"}, source=measured)
    server.wait_for("started")
    samples = scrape(server)
    assert [total(samples, "queue_jobs", queue=queue) for queue in ("mail", "print")] == [3, 4]
    assert total(samples, "queue_done_total") == 7
    assert server.wait_for("crash", dependency="queues.open_broken")["exception"]
    assert "hunter22" not in str(server.log)


def test_names_and_types_keep_prometheus_rules(start: Start, measured: Path) -> None:
    """Those of `promtool check metrics`, and promtool itself where there is one."""
    server = start(*SERVE_HTTP, settings={"MCP_METRICS_PORT": "0"}, source=measured)
    peer = Peer(HTTP[0], server)
    with peer.http:
        for tool in ("probe_list", "probe_reached"):
            peer.call(tool)
    text = read(server)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    helped = dict(re.findall(r"^# HELP (\S+) (\S.*)$", text, re.MULTILINE))
    assert {DURATION, IN_FLIGHT, "mcp_server_event_loop_lag_seconds", "queue_jobs"} < set(kinds) == set(helped)
    for name, kind in kinds.items():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(
            r"_(count|sum|bucket|counter|gauge|histogram|summary|ms|milliseconds|minutes|kb|mb)$", name
        )
        assert kind != "histogram" or name.endswith("_seconds"), name
    assert text.count("# TYPE ") == len(kinds), "each is declared once"
    if promtool := shutil.which("promtool"):
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The start and the end


def listening(server: Server) -> int:
    """How many TCP sockets its process listens on."""
    own = {Path(link).readlink().name for link in Path(f"/proc/{server.process.pid}/fd").iterdir() if link.is_symlink()}
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()]
    return sum(row[3] == "0A" and f"socket:[{row[9]}]" in own for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("arguments", [(), SERVE_HTTP], ids=["stdio", "http"])
def test_off_unless_the_port_is_set(start: Start, arguments: tuple[str, ...]) -> None:
    """One socket more listens with it, none without."""
    servers = [start(*arguments), start(*arguments, settings={"MCP_METRICS_PORT": "0"})]
    for server in servers:
        server.wait_for("listening" if arguments else "started")
    assert [listening(server) for server in servers] == ([1, 2] if arguments else [0, 1])
    assert not any(event["event"] == "metrics_listening" for event in servers[0].log)


@pytest.fixture
def without_extra(tmp_path: Path) -> Path:
    """A folder that makes the library seem not installed."""
    missing = "raise ModuleNotFoundError(\"No module named 'prometheus_client'\", name='prometheus_client')"
    (tmp_path / "prometheus_client.py").write_text(missing)
    return tmp_path


@pytest.mark.parametrize("arguments", [(), SERVE_HTTP], ids=["stdio", "http"])
def test_extra_that_is_not_installed(without_extra: Path, arguments: tuple[str, ...]) -> None:
    """The start is refused with the command that installs it; without the setting nobody misses it."""
    done = run_command(*arguments, source=without_extra, settings={"MCP_METRICS_PORT": "0"})
    assert done.returncode == 2
    assert "MCP_METRICS_PORT: " in done.stderr
    assert "uv sync --extra metrics" in done.stderr
    assert "Traceback" not in done.stderr
    if not arguments:  # which ends with its input
        assert run_command(source=without_extra).returncode == 0


@pytest.mark.parametrize("arguments", [(), SERVE_HTTP], ids=["stdio", "http"])
def test_port_that_is_taken(arguments: tuple[str, ...]) -> None:
    """The start is refused with a line that names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_command(*arguments, settings={"MCP_METRICS_PORT": str(taken.getsockname()[1])})
    assert done.returncode == 2
    assert "MCP_METRICS_PORT: cannot listen on 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr


@SIGNALS
def test_drain_can_be_watched(start_peer: StartPeer, way: Way) -> None:
    """While calls in flight finish, their number and the state can be read; the port ends with the process."""
    peer = start_peer(way, metrics_port="0")
    with ThreadPoolExecutor() as pool:
        call = pool.submit(peer.call, "probe_waits", seconds=1.2 if way.transport == "stdio" else 2.0)
        peer.server.wait_for("waiting")
        peer.server.process.terminate()
        until(lambda: total(scrape(peer.server), "mcp_server_readiness", status="draining") == 1)
        assert total(scrape(peer.server), IN_FLIGHT, method="tools/call") == 1
        assert "result" in call.result()
    assert peer.server.process.wait(PATIENCE) == 0
    with pytest.raises(ConnectionRefusedError):
        read(peer.server)


@SIGNALS
def test_calls_that_were_cut_can_be_read(start: Start, measured: Path) -> None:
    """The last values are there while the dependencies are closed."""
    settings = {"MCP_METRICS_PORT": "0", "MCP_DRAIN_TIMEOUT_SECONDS": "0.1"}
    peer = Peer(HTTP[0], start(*SERVE_HTTP, settings=settings, source=measured))
    with peer.http, ThreadPoolExecutor() as pool:
        call = pool.submit(peer.error, "probe_waits", seconds=30)
        peer.server.wait_for("waiting")
        peer.server.process.terminate()
        assert call.result()["code"] == "shutting_down"
        peer.server.wait_for("closing")
        samples = scrape(peer.server)
        assert total(samples, "mcp_server_cut_calls_total") == 1
        assert total(samples, "mcp_server_lost_calls_total") == 0
        assert total(samples, f"{DURATION}_count", outcome="shutting_down") == 1
    assert peer.server.process.wait(PATIENCE) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_calls_that_were_lost_can_be_read(measured: Path) -> None:
    """An answer that cannot be written is counted before the process ends for it."""
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", PACKAGE],
            stdin=subprocess.PIPE,
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(measured, {"MCP_METRICS_PORT": "0"}),
        )
    assert process.stdin is not None
    assert process.stderr is not None
    with process:
        url = ""
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "metrics_listening":
                url = event["url"]
                process.stdin.write(b"no JSON, which is answered\n")
                process.stdin.flush()
            if event["event"] == "closing":
                break
        assert re.search(r"^mcp_server_lost_calls_total 1.0$", get(url), re.MULTILINE)
        process.stderr.read()
    assert process.returncode == 1


# Bad input


@pytest.fixture(scope="module")
def http_metrics() -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    with Server(*SERVE_HTTP, settings={"MCP_METRICS_PORT": "0"}) as server:
        yield server


HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n" + HOST, b"200 OK"),
        (b"HEAD /metrics HTTP/1.1\r\n" + HOST, b"200 OK"),
        (b"GET /metrics?name=x HTTP/1.0\r\n", b"200 OK"),
        (b"GET /mcp HTTP/1.1\r\n" + HOST, b"404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n" + HOST, b"405 Method Not Allowed"),
        (b"GET /metrics HTTP/1.1\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + HOST, b"400 Bad Request"),
        (b"GET /metrics HTTP/2.0\r\n" + HOST, b"400 Bad Request"),
        (b"GET /metrics\r\n", b"400 Bad Request"),
        (b"\x16\x03\x01\x02\x00\xff\r\n", b"400 Bad Request"),
        (b"\r\n", b"400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nOrigin: http://localhost\r\n" + HOST, b"403 Forbidden"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 1_000_000, b""),
    ],
)
def test_what_is_no_scrape_is_refused(http_metrics: Server, sent: bytes, status: bytes) -> None:
    """Each gets one answer, in JSON that says why, or none, and its connection is closed; the next scrape is served. A body
    that nobody reads takes no answer away."""
    url = httpx2.URL(url_of(http_metrics))
    with socket.create_connection((url.host, url.port or 0), PATIENCE) as connection:
        try:
            connection.sendall(sent + b"\r\n" + b"x" * 100_000)
            found = rest_of(connection)
        except (BrokenPipeError, ConnectionResetError):
            found = b""
    head, _, body = found.partition(b"\r\n\r\n")
    assert head.partition(b"\r\n")[0] == (b"HTTP/1.1 " + status if status else b"")
    assert (body == b"") == (sent.startswith(b"HEAD") or not status)
    if status[:1] == b"4":
        assert json.loads(body)["error"]
    assert scrape(http_metrics)
    assert not [event for event in http_metrics.log if event["level"] == "error"]


NAMED = {"MCP_METRICS_PORT": "0", "MCP_METRICS_HOST": "127.0.0.1", "MCP_ALLOWED_HOSTS": "tools.example.com:8443,app"}


@pytest.fixture(scope="module")
def named_metrics() -> Iterator[str]:
    """Where the metrics of a server are that has names."""
    with Server(*SERVE_HTTP, settings=NAMED) as server:
        yield url_of(server)


@pytest.mark.parametrize(
    ("host", "is_read"),
    [
        *(("127.0.0.1:PORT", True), ("10.1.2.3", True), ("[::1]:PORT", True), ("[fd00::7]", True)),
        *(("localhost:PORT", True), ("LOCALHOST", True), ("tools.example.com:PORT", True), ("app", True)),
        *(("rebound.example.org:PORT", False), ("127.0.0.1.example.org", False), ("localhost.example.org", False)),
        *(("localhost:PORT@example.org", False), ("example.com", False), ("", False), ("2130706433", False)),
        *(("x@127.0.0.1", False), ("::1", False), ("[::1].example.org", False), ("example.org:80:PORT", False)),
    ],
)
def test_page_that_takes_this_address_reads_nothing(named_metrics: str, host: str, is_read: bool) -> None:
    """Metrics are read by address, as Prometheus finds pods, and by the names this server has; a page whose own name was
    made to mean this machine (DNS rebinding) is refused."""
    url = httpx2.URL(named_metrics)
    with closing(HTTPConnection(url.host, url.port, timeout=PATIENCE)) as connection:
        connection.request("GET", url.path, headers={"Host": host.replace("PORT", str(url.port))})
        answer = connection.getresponse()
        body = answer.read()
    assert answer.status == (200 if is_read else 421)
    assert (b"mcp_server_build_info" in body) == is_read


def test_who_scrapes_at_once_reads_one_text(start: Start, measured: Path) -> None:
    """Scrapes that come while one is being answered cost nothing more: the dependency that fails does so once for all."""
    server = start(*SERVE_HTTP, source=measured, settings={"MCP_METRICS_PORT": "0"})
    url = httpx2.URL(url_of(server))
    with ExitStack() as stack:
        connect = partial(socket.create_connection, (url.host, url.port or 0), PATIENCE)
        asking = [stack.enter_context(connect()) for _ in range(20)]
        for each in asking:
            each.sendall(b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n")
        answers = [rest_of(each) for each in asking]
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 20
    assert all(b"queue_done_total 7.0\n" in answer for answer in answers)
    server.wait_for("crash")
    written = [event for event in server.log if event["event"] == "crash"]
    assert 1 <= len(written) <= 10  # twenty, if each were written for itself


def test_clients_that_say_nothing_give_way(start_peer: StartPeer) -> None:
    """There are never many of them, none stays for long, and neither who scrapes nor callers notice."""
    peer = start_peer(HTTP[0], metrics_port="0")
    url = httpx2.URL(url_of(peer.server))
    with ExitStack() as stack:
        silent = []
        for _ in range(40):
            silent.append(stack.enter_context(socket.create_connection((url.host, url.port or 0), PATIENCE)))
            silent[-1].sendall(b"GET /metrics HTTP/1.1\r\n")
        began = time.monotonic()
        assert [rest_of(each) for each in silent[:8]] == [b""] * 8
        assert "result" in peer.call("probe_list")
        assert total(scrape(peer.server), f"{DURATION}_count") == 1
        assert time.monotonic() - began < 4
        assert [rest_of(each) for each in silent[8:]] == [b""] * 32
        assert time.monotonic() - began > 4
    assert total(scrape(peer.server), f"{DURATION}_count") == 1
