"""Traces: what a collector gets is what the log says, in the caller's trace, and holds nothing that was sent."""

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from {{ cookiecutter.package_name }} import NAME, errors
from {{ cookiecutter.package_name }}.auth.api_keys import new_key
from {{ cookiecutter.package_name }}.spans import FAULTS

from .conftest import Start
from .faulty_upstream import Answer, FaultyUpstream
from .harness import HTTP, MODERN, SERVE_HTTP, STDIO, Json, Peer, Server, Way, run_command, until
from .test_metrics import send_no_json
from .test_outcomes import TABLE

BOTH = [STDIO[1], HTTP[0]]  # each transport, each era
PARENT = "00f067aa0ba902b7"
CANARY = "s3cret-canary"
COLLECTOR_KEY = "cr3dential-for-the-collector"
SIGNALS = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@dataclass(frozen=True)
class Span:
    """One span, as the collector got it. `told`: all of it, as text."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Json
    is_error: bool
    events: list[tuple[str, Json]]
    state: str
    resource: Json
    told: str = field(repr=False)


class Collector(FaultyUpstream):
    """An endpoint for OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__()
        self._read: list[list[Span]] = []

    @property
    def spans(self) -> list[Span]:
        """All that have come so far."""
        for received in self.requests[len(self._read) :]:
            assert (received.method, received.path) == ("POST", "/v1/traces")
            assert received.headers["content-type"] == "application/x-protobuf"
            self._read.append(list(spans_in(received.body)))
        return [span for spans in self._read for span in spans]

    def find(self, number: int = 1, **fields: object) -> list[Span]:
        """Wait for as many spans with these fields."""

        def found() -> list[Span]:
            return [each for each in self.spans if fields.items() <= vars(each).items()]

        until(lambda: len(found()) >= number)
        assert len(found()) == number
        return found()


def spans_in(body: bytes) -> Iterator[Span]:
    """The spans of one request to the collector."""

    def value_of(value: AnyValue) -> Any:
        return getattr(value, str(value.WhichOneof("value")))

    def attributes_of(sent: Any) -> Json:
        return {each.key: value_of(each.value) for each in sent}

    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        for sent in (each for scope in resource.scope_spans for each in scope.spans):
            assert sent.end_time_unix_nano >= sent.start_time_unix_nano > 0
            assert sent.status.message == ""
            yield Span(
                name=sent.name,
                kind=SentSpan.SpanKind.Name(sent.kind).removeprefix("SPAN_KIND_"),
                trace_id=sent.trace_id.hex(),
                span_id=sent.span_id.hex(),
                parent_id=sent.parent_span_id.hex(),
                attributes=attributes_of(sent.attributes),
                is_error=sent.status.code == Status.STATUS_CODE_ERROR,
                events=[(each.name, attributes_of(each.attributes)) for each in sent.events],
                state=sent.trace_state,
                resource=attributes_of(resource.resource.attributes),
                told=str(sent),
            )


class Scene(NamedTuple):
    """A server that exports its spans, the collector they go to, and a service that its tools call."""

    peer: Peer
    collector: Collector
    upstream: FaultyUpstream

    def line(
        self,
        tool: str,
        meta: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        **arguments: Any,
    ) -> Json:
        """The log line of a call; both eras count their ids from 1."""
        peer = self.peer
        message = peer.message("tools/call", {"name": tool, "arguments": arguments, "_meta": dict(meta or {})})
        if peer.way.transport == "http":
            peer.post(message, headers)
        else:
            peer.server.send(message)
            assert peer.server.receive()["id"] == message["id"]
        return peer.server.wait_for("request", rpc_id=message["id"], tool=tool, protocol_version=peer.way.version)

    def span(self, line: Json) -> Span:
        """The span of the request with this line."""
        name = " ".join(filter(None, [line["method"], line["tool"]]))
        return self.collector.find(trace_id=line["trace_id"], name=name)[0]


@pytest.fixture(scope="module")
def scenes(source: Path) -> Iterator[Callable[[Way], Scene]]:
    """One for each way, shared by the tests of this file; both eras share one HTTP server."""
    made: dict[Way, Scene] = {}
    servers: dict[object, tuple[Server, Collector, FaultyUpstream]] = {}
    with ExitStack() as stack:

        def scene(way: Way) -> Scene:
            key = "http" if way.transport == "http" else way
            if key not in servers:
                collector, upstream = stack.enter_context(Collector()), stack.enter_context(FaultyUpstream())
                settings = otel(
                    collector,
                    MCP_UPSTREAM_BASE_URL=f"{upstream.base_url}/{CANARY}",
                    MCP_UPSTREAM_TOKEN=CANARY,
                    MCP_LOG_LEVEL="DEBUG",
                    OTEL_EXPORTER_OTLP_HEADERS=f"authorization=Bearer%20{COLLECTOR_KEY},x-key={CANARY}-2",
                )
                server = stack.enter_context(Server(*arguments_of(way), source=source, settings=settings))
                servers[key] = server, collector, upstream
            if way not in made:
                server, collector, upstream = servers[key]
                made[way] = Scene(Peer(way, server), collector, upstream)
                if way.transport == "http":
                    stack.callback(made[way].peer.http.close)
            return made[way]

        yield scene


@pytest.fixture
def scene(way: Way, scenes: Callable[[Way], Scene]) -> Scene:
    """The test runs once for each of the four ways."""
    found = scenes(way)
    found.upstream.play(Answer(json={"rate": 1}))
    return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector of the test's own."""
    with Collector() as server:
        yield server


@pytest.fixture
def own(way: Way, start: Start, collector: Collector, upstream: FaultyUpstream) -> Iterator[Callable[..., Scene]]:
    """`own(OTEL_SERVICE_NAME="x")`: a scene of the test's own, with these settings."""
    with ExitStack() as stack:

        def make(**settings: str) -> Scene:
            peer = Peer(way, start(*arguments_of(way), settings=otel(collector, **settings)))
            if way.transport == "http":
                stack.callback(peer.http.close)
            return Scene(peer, collector, upstream)

        yield make


def arguments_of(way: Way) -> tuple[str, ...]:
    """What starts a server for it."""
    return SERVE_HTTP if way.transport == "http" else ()


def otel(collector: FaultyUpstream, **more: str) -> dict[str, str]:
    """The variables that send spans there, every 20 ms."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.base_url, "OTEL_BSP_SCHEDULE_DELAY": "20", **more}


def stop(peer: Peer) -> tuple[int, list[bytes]]:
    """Its exit code, and what was left on stdout."""
    if peer.way.transport == "http":
        peer.http.close()
        peer.server.process.send_signal(signal.SIGTERM)
    return peer.server.finish()


_traces = iter(range(1, 1 << 32))


def new_parent() -> tuple[str, str]:
    """A trace id that no other test has, and a `traceparent` in it."""
    trace = f"{next(_traces):032x}"
    return trace, f"00-{trace}-{PARENT}-01"


# Requests


def test_every_request_has_one_span(own: Callable[..., Scene], way: Way) -> None:
    """Whatever became of it: named, attributed and judged by its outcome, with the trace id of its log line."""
    peer, collector, _ = own()
    for code, (tool, arguments, _) in TABLE.items():
        assert peer.error(tool, **arguments)["code"] == code
    peer.call("probe_list")
    peer.call("no_such_tool")
    peer.request("prompts/get", {"name": "probe_prompt", "arguments": {"count": "3"}})
    peer.request("prompts/get", {"name": "no_such_prompt"})
    peer.request("resources/read", {"uri": "probe://numbers/7"})
    peer.request("no/such/method")
    peer.request("tools/list")
    send_no_json(peer)
    begun = way.transport == "stdio" and way.version != MODERN  # with `initialize`
    spans = {span.trace_id: span for span in collector.find(len(TABLE) + 8 + begun)}

    def logged() -> list[Json]:
        return [line for line in peer.server.log if line["event"] == "request"]

    until(lambda: len(logged()) >= len(spans))  # lines are gathered for some milliseconds
    lines = logged()
    assert sorted(spans) == sorted(line["trace_id"] for line in lines)
    for line in lines:
        span, tool, outcome = spans[line["trace_id"]], line["tool"], line["outcome"]
        is_prompt = line["method"] == "prompts/get" and outcome == "ok"
        target = tool or ("probe_prompt" if is_prompt else None)
        assert span.name == " ".join(filter(None, [line["method"], target]))
        assert (span.kind, span.parent_id, span.state) == ("SERVER", "", "")
        assert span.is_error == (outcome in FAULTS)
        rpc_code = span.attributes.pop("rpc.response.status_code", None)
        assert (rpc_code is not None) == (outcome != "ok" and not tool), line
        assert span.attributes == {
            "mcp.method.name": line["method"],
            "mcp.protocol.version": line["protocol_version"],
            "network.transport": "pipe" if way.transport == "stdio" else "tcp",
            **({"network.protocol.name": "http"} if way.transport == "http" else {}),
            **({"jsonrpc.request.id": str(line["rpc_id"])} if line["rpc_id"] is not None else {}),
            **({"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": tool} if tool else {}),
            **({"gen_ai.prompt.name": target} if is_prompt else {}),
            **({"error.type": outcome} if outcome != "ok" else {}),
        }


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [
        ("tools/call", {"name": "no_such_tool", "arguments": {}}, "-32602"),
        ("resources/read", {"uri": "probe://secret"}, "403"),
        ("no/such/method", {}, "-32601"),
    ],
)
def test_error_that_is_no_tool_result_has_its_code(scene: Scene, method: str, params: Json, code: str) -> None:
    """The JSON-RPC code that the caller got."""
    trace, traceparent = new_parent()
    scene.peer.request(method, params | {"_meta": {"traceparent": traceparent}})
    (span,) = scene.collector.find(trace_id=trace)
    assert span.attributes["rpc.response.status_code"] == code


def test_every_outcome_is_judged() -> None:
    """What is the server's own doing is an error of the span; what its caller can change is none."""

    def below(kind: type[errors.CallError]) -> Iterator[str]:
        for each in kind.__subclasses__():
            yield each.code
            yield from below(each)

    of_callers = {"invalid_arguments", "invalid_request", "unknown_tool", "not_found", "failed"}
    of_callers |= {"unauthenticated", "forbidden", "rate_limited"}
    assert set(below(errors.CallError)) == of_callers | FAULTS
    assert not of_callers & FAULTS


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_request_that_is_refused_at_the_edge_has_its_span(own: Callable[..., Scene], tmp_path: Path) -> None:
    """A 401 is a part of the caller's trace too."""
    new_key(tmp_path / "keys.json", "tests", [], None)
    scene = own(MCP_AUTH_MODE="api_key", MCP_API_KEYS_FILE=str(tmp_path / "keys.json"))
    trace, traceparent = new_parent()
    message = scene.peer.message("tools/call", {"name": "probe_list", "arguments": {}})
    scene.peer.post(message, {"traceparent": traceparent})
    line = scene.peer.server.wait_for("request")
    span = scene.span(line)
    assert (line["outcome"], span.attributes["error.type"]) == ("unauthenticated", "unauthenticated")
    assert (span.trace_id, span.parent_id, span.is_error) == (trace, PARENT, False)


def test_span_belongs_to_the_callers_trace(scene: Scene) -> None:
    """What `_meta` names is the parent, before what an HTTP header names; the vendor's state goes along."""
    elsewhere = {"traceparent": new_parent()[1], "tracestate": "other=1"}
    trace, traceparent = new_parent()
    span = scene.span(scene.line("probe_list", {"traceparent": traceparent, "tracestate": "vendor=1"}, elsewhere))
    assert (span.trace_id, span.parent_id, span.state) == (trace, PARENT, "vendor=1")


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_headers_name_the_parent_where_meta_does_not(scene: Scene) -> None:
    """A proxy that traces is in between, or a client that knows only HTTP's convention."""
    trace, traceparent = new_parent()
    span = scene.span(scene.line("probe_list", headers={"traceparent": traceparent, "tracestate": "vendor=1"}))
    assert (span.trace_id, span.parent_id, span.state) == (trace, PARENT, "vendor=1")


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "garbage",
        f"00-{'a' * 32}-{PARENT}",
        f"00-{'a' * 32}-{PARENT}-01-more",
        f"ff-{'a' * 32}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{'a' * 32}-{'0' * 16}-01",
        f"00-{'A' * 32}-{PARENT}-01",
        f"00-{'a' * 32}-{PARENT}-01" * 200,
    ],
    ids=["empty", "garbage", "short", "long", "version", "no-trace", "no-span", "capitals", "endless"],
)
def test_malformed_parent_is_none(scene: Scene, traceparent: str) -> None:
    """The request is served, in a trace of its own."""
    line = scene.line("probe_list", {"traceparent": traceparent, "tracestate": "vendor=1"})
    span = scene.span(line)
    assert (span.parent_id, span.state, line["outcome"]) == ("", "", "ok")
    assert span.trace_id not in ("a" * 32, "0" * 32)


def test_state_that_is_too_long_is_dropped(scene: Scene) -> None:
    """It would be sent on with every span."""
    span = scene.span(scene.line("probe_list", {"traceparent": new_parent()[1], "tracestate": f"vendor={'1' * 600}"}))
    assert (span.parent_id, span.state) == (PARENT, "")


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_callers_sampling_is_followed(own: Callable[..., Scene], scene: Scene) -> None:
    """A caller that records no spans gets none, and its trace id in the log; `OTEL_TRACES_SAMPLER` can say otherwise."""
    trace, traceparent = new_parent()
    unsampled = {"traceparent": traceparent.removesuffix("01") + "00"}
    assert scene.line("probe_list", unsampled)["trace_id"] == trace
    scene.span(scene.line("probe_list"))
    assert not [span for span in scene.collector.spans if span.trace_id == trace]
    always = own(OTEL_TRACES_SAMPLER="always_on")
    assert always.span(always.line("probe_list", unsampled)).trace_id == trace


@pytest.mark.parametrize("tool", ["probe_own_span", "probe_own_span_in_a_thread"])
def test_spans_of_a_tool_are_below_its_call(scene: Scene, tool: str) -> None:
    """What a tool, or a library in it, makes with OpenTelemetry's API is exported too, and belongs to its call alone."""
    for line in [scene.line(tool) for _ in range(3)]:
        call = scene.span(line)
        (found,) = scene.collector.find(parent_id=call.span_id)
        assert (found.name, found.trace_id) == ("own work", line["trace_id"])
        assert call.parent_id == ""


def test_events_of_a_call_carry_its_trace(scene: Scene) -> None:
    """Not only the request's own line."""
    line = scene.line("probe_crashes", secret=CANARY)
    crash = scene.peer.server.wait_for("crash", request_id=line["request_id"])
    assert crash["trace_id"] == line["trace_id"]


# What is in them


def test_nothing_that_was_sent_is_in_a_span(scene: Scene) -> None:
    """No argument, exception's text, header, address, or answer of a service; of an exception its type."""
    peer, collector, upstream = scene
    upstream.play(Answer(400, body=CANARY.encode(), headers={"X-Canary": CANARY}))
    crash = scene.span(scene.line("probe_crashes", secret=CANARY))
    assert crash.events == [("exception", {"exception.type": "ValueError"})]
    peer.error("probe_arguments", count=CANARY)
    peer.error("probe_ask", path=f"/{CANARY}?q={CANARY}")
    peer.call("probe_fetch_here", url=f"{upstream.base_url}/{CANARY}?q={CANARY}#x")
    peer.call(CANARY)
    peer.request("resources/read", {"uri": f"probe://files/{CANARY}"})
    peer.request("prompts/get", {"name": CANARY, "arguments": {CANARY: CANARY}})
    peer.request(f"{CANARY}/method")
    meta = {"traceparent": new_parent()[1], "baggage": f"a={CANARY}", CANARY: CANARY}
    scene.span(scene.line("probe_list", meta, {"X-Canary": CANARY, "User-Agent": CANARY, "baggage": f"a={CANARY}"}))
    for span in collector.spans:
        assert CANARY not in span.told
        assert "127.0.0.1" not in span.told or span.attributes.get("peer.service") == "service"
    assert not [received for received in collector.requests if CANARY.encode() in received.body]


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_resource_names_the_server(own: Callable[..., Scene], scene: Scene) -> None:
    """By its own name and version, and each process by itself, unless the operator says otherwise."""
    first = scene.span(scene.line("probe_list")).resource
    assert (first["service.name"], first["telemetry.sdk.name"]) == (NAME, "opentelemetry")
    other = own(OTEL_SERVICE_NAME="other", OTEL_RESOURCE_ATTRIBUTES="service.version=told,team=x")
    second = other.span(other.line("probe_list")).resource
    assert (second["service.name"], second["service.version"], second["team"]) == ("other", "told", "x")
    assert first["service.version"] != "told"
    assert first["service.instance.id"] != second["service.instance.id"]


# Calls outward


def test_each_attempt_outward_is_a_span_that_the_service_is_told_of(scene: Scene) -> None:
    """A retry is another span; the service gets `traceparent`, and nothing of what the caller sent along."""
    upstream = scene.upstream
    upstream.play(Answer(503, headers={"Retry-After": "0"}), Answer.reset(), Answer(json={"rate": 1}))
    trace, traceparent = new_parent()
    meta = {"traceparent": traceparent, "tracestate": "vendor=1", "baggage": "user=ada"}
    call = scene.span(scene.line("probe_ask", meta, {"baggage": "user=ada"}))
    attempts = scene.collector.find(3, parent_id=call.span_id)
    asked = {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": int(upstream.base_url.rpartition(":")[2]),
        "peer.service": "service",
    }
    assert [span.attributes for span in attempts] == [
        asked | {"http.response.status_code": 503, "error.type": "status_503"},
        asked | {"http.request.resend_count": 1, "error.type": "broken_off"},
        asked | {"http.request.resend_count": 2, "http.response.status_code": 200},
    ]
    assert [(span.name, span.kind, span.trace_id) for span in attempts] == [("GET service", "CLIENT", trace)] * 3
    assert [span.is_error for span in attempts] == [True, True, False]
    for received, span in zip(upstream.requests, attempts, strict=True):
        assert received.headers["traceparent"] == f"00-{trace}-{span.span_id}-01"
        assert not {"tracestate", "baggage"} & set(received.headers)


def test_stranger_is_not_told_of_the_trace(scene: Scene) -> None:
    """Whoever answers at an address of the caller's gets no id of this server's, and has a span without an address."""
    scene.upstream.play(Answer(404, body=b"nothing"))
    call = scene.span(scene.line("probe_fetch_here", url=scene.upstream.base_url))
    (fetch,) = scene.collector.find(parent_id=call.span_id)
    assert (fetch.name, fetch.is_error) == ("GET web", False)
    assert fetch.attributes == {"http.request.method": "GET", "http.response.status_code": 404}
    assert "traceparent" not in scene.upstream.wait_for(1)[0].headers


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_service_is_told_of_no_trace_without_traces(own: Callable[..., Scene]) -> None:
    """Off, nothing changes for anybody: the caller's trace id is in the log, if it sends one."""
    scene = own(OTEL_SDK_DISABLED="true", MCP_UPSTREAM_BASE_URL="http://127.0.0.1")
    trace, traceparent = new_parent()
    assert scene.line("probe_ask", {"traceparent": traceparent})["trace_id"] == trace
    assert "trace_id" not in scene.line("probe_list")
    scene = own(OTEL_SDK_DISABLED="true", MCP_UPSTREAM_BASE_URL=scene.upstream.base_url)
    scene.upstream.play(Answer(json={"rate": 1}))
    assert scene.line("probe_ask", {"traceparent": traceparent})["outcome"] == "ok"
    assert "traceparent" not in scene.upstream.wait_for(1)[0].headers


# The collector's bad days

WITHOUT_USE = {
    "refuses": None,
    "hangs": Answer.hang(),
    "fails": Answer(500),
    "forbids": Answer(403),
    "resets": Answer.reset(),
}


@SIGNALS
@pytest.mark.parametrize("fault", WITHOUT_USE)
@pytest.mark.parametrize("way", BOTH, ids=str)
def test_collector_that_is_of_no_use_costs_calls_nothing(own: Callable[..., Scene], way: Way, fault: str) -> None:
    """Calls are answered, the stop takes its time, stdout is clean, and the log has one line of it at most."""
    settings = {"OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2"}
    answer = WITHOUT_USE[fault]
    if fault != "hangs":
        settings["OTEL_EXPORTER_OTLP_TIMEOUT"] = "1"  # seconds, after which it gives up a batch
    if answer is None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            settings["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{closed.getsockname()[1]}"
    peer, collector, _ = own(**settings)
    collector.play(answer or Answer())
    for _ in range(30):
        assert peer.call("probe_list")["result"]["isError"] is False
    if fault != "hangs":
        peer.server.wait_for("traces_not_exported")
    began = time.monotonic()
    assert stop(peer) == (0, [])
    assert time.monotonic() - began < (1.9 if way.transport == "stdio" else 3)
    told = [line for line in peer.server.log if line["level"] != "info"]
    assert [line["event"] for line in told] in ([], ["traces_not_exported"])
    assert "127.0.0.1" not in str(told)


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_collector_that_is_back_is_told_once(own: Callable[..., Scene]) -> None:
    """One line when it goes, one when it is back."""
    peer, collector, _ = own()
    collector.play(Answer(400), Answer(400), Answer(json={}))
    end = time.monotonic() + 10
    while not any(line["event"] == "traces_exported_again" for line in peer.server.log):
        peer.call("probe_list")
        assert time.monotonic() < end
    told = [line["event"] for line in peer.server.log if line["event"].startswith("traces")]
    assert told == ["traces_not_exported", "traces_exported_again"]


@SIGNALS
def test_last_spans_are_sent_at_the_stop(own: Callable[..., Scene]) -> None:
    """Those that wait for their batch when the server stops."""
    scene = own(OTEL_BSP_SCHEDULE_DELAY="60000")
    line = scene.line("probe_own_span")
    assert stop(scene.peer) == (0, [])
    names = {span.name for span in scene.collector.find(2, trace_id=line["trace_id"])}
    assert names == {"own work", "tools/call probe_own_span"}


# What turns them on


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "{}"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "{}"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "{}"},
    ],
    ids=["not-set", "disabled", "none", "metrics-only"],
)
def test_off(start: Start, collector: Collector, settings: dict[str, str]) -> None:
    """Nothing is sent, no word is lost about it, and no line has a trace of this server's own."""
    filled = {name: value.format(collector.base_url) for name, value in settings.items()}
    peer = Peer(STDIO[0], start(settings={**filled, "OTEL_BSP_SCHEDULE_DELAY": "20"}))
    peer.call("probe_list")
    assert stop(peer) == (0, [])
    assert collector.requests == []
    assert not [line for line in peer.server.log if line["event"].startswith("traces") or "trace_id" in line]


@pytest.mark.parametrize("way", BOTH, ids=str)
def test_endpoint_of_traces_alone_is_taken_as_it_is(own: Callable[..., Scene], collector: Collector) -> None:
    """The general endpoint is a base; this one is the address itself."""
    there = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector.base_url}/v1/traces", "OTEL_TRACES_EXPORTER": "otlp"}
    scene = own(**there, OTEL_EXPORTER_OTLP_ENDPOINT="")
    scene.span(scene.line("probe_list"))


@pytest.mark.parametrize("way", BOTH, ids=str)
@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{CANARY}:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be an http or https"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://u:{CANARY}@localhost"}, "OTEL_EXPORTER_OTLP_ENDPOINT: must be"),
        ({"OTEL_TRACES_EXPORTER": CANARY}, "OTEL_TRACES_EXPORTER: must be otlp, or none"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_*: one of these variables"),
    ],
    ids=["no-address", "with-a-password", "exporter", "protocol", "queue"],
)
def test_variable_that_is_of_no_use(own: Callable[..., Scene], settings: dict[str, str], problem: str) -> None:
    """A warning names it, without its value, and the server serves: whole platforms set these variables."""
    peer, _, _ = own(**settings)
    line = peer.server.wait_for("traces_off")
    assert (line["level"], len(line["problems"])) == ("warning", 1)
    assert problem in line["problems"][0]
    assert peer.call("probe_list")["result"]["isError"] is False
    assert CANARY not in str(peer.server.stderr)


@pytest.mark.parametrize("arguments", [(), SERVE_HTTP], ids=["stdio", "http"])
def test_extra_that_is_not_installed(tmp_path: Path, start: Start, arguments: tuple[str, ...]) -> None:
    """A warning says how to install it, and the server serves; nobody misses it where traces are not wanted."""
    hidden = "import sys\nsys.modules['opentelemetry.sdk'] = sys.modules['opentelemetry.exporter'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    server = start(*arguments, source=tmp_path, settings={"OTEL_TRACES_EXPORTER": "otlp"})
    assert "uv sync --extra otel" in server.wait_for("traces_off")["problems"][0]
    server.wait_for("listening" if arguments else "started")
    if not arguments:  # which ends with its input
        done = run_command(source=tmp_path)
        assert (done.returncode, "traces_off" in done.stderr) == (0, False)


def test_credential_for_the_collector_stays_with_the_exporter(scene: Scene) -> None:
    """It reaches the collector, and neither a tool's environment nor the log."""
    found = scene.peer.call("caller_finds")["result"]["structuredContent"]["result"]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in found
    assert "OTEL_EXPORTER_OTLP_HEADERS" not in found
    scene.span(scene.line("probe_list"))
    received = scene.collector.requests[0]
    assert (received.headers["authorization"], received.headers["x-key"]) == (f"Bearer {COLLECTOR_KEY}", f"{CANARY}-2")
    line = scene.line("probe_logs", secret=COLLECTOR_KEY)
    scene.peer.server.wait_for("kinds", request_id=line["request_id"])
    assert COLLECTOR_KEY not in str(scene.peer.server.stderr)
