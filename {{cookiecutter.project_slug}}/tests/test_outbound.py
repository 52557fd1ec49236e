"""Tools that call a service on its bad days, over both transports and in both eras."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx2
import pytest

from {{ cookiecutter.package_name }}.errors import UpstreamUnavailable
from {{ cookiecutter.package_name }}.outbound.exchange import NoAnswer, Response
from {{ cookiecutter.package_name }}.outbound.upstream import Limits
from {{ cookiecutter.package_name }}.outbound.upstream import upstream as upstream_of
from {{ cookiecutter.package_name }}.settings import load_settings

from .conftest import Start, StartPeer
from .faulty_upstream import Answer, FaultyUpstream
from .harness import SERVE_HTTP, Json, Peer, Server, Way, answer_of, run_command

MEBIBYTE = 1 << 20
TOKEN = "upstream-t0ken-of-the-server"
WELL = Answer(json={"rate": 1})


@dataclass
class Pair:
    """A server, and the service that its tools call."""

    peer: Peer
    upstream: FaultyUpstream


@pytest.fixture(scope="module")
def pairs(source: Path) -> Iterator[Callable[[Way], Pair]]:
    """One for each way, shared by the tests of this file; both eras share one HTTP server."""
    made: dict[Way, Pair] = {}
    servers: dict[object, tuple[Server, FaultyUpstream]] = {}
    with ExitStack() as stack:

        def pair(way: Way) -> Pair:
            key = "http" if way.transport == "http" else way
            if key not in servers:
                upstream = stack.enter_context(FaultyUpstream())
                settings = {"MCP_UPSTREAM_BASE_URL": f"{upstream.base_url}/v1", "MCP_UPSTREAM_TOKEN": TOKEN}
                arguments = SERVE_HTTP if way.transport == "http" else ()
                server = Server(*arguments, source=source, settings={**settings, "MCP_LOG_LEVEL": "DEBUG"})
                servers[key] = stack.enter_context(server), upstream
            if way not in made:
                server, upstream = servers[key]
                made[way] = Pair(Peer(way, server), upstream)
                if way.transport == "http":
                    stack.callback(made[way].peer.http.close)
            return made[way]

        yield pair


@pytest.fixture
def pair(way: Way, pairs: Callable[[Way], Pair]) -> Pair:
    """The test runs once for each of the four ways."""
    return pairs(way)


def structured(answer: Json) -> Json:
    """The result of a call that succeeded."""
    assert answer["result"]["isError"] is False, answer
    found: Json = answer["result"]["structuredContent"]
    return found


def retry_of(pair: Pair, answer: Json) -> Json:
    """The line of the first retry of a call that succeeded; both eras count their ids from 1."""
    fields = {"rpc_id": answer["id"], "protocol_version": pair.peer.way.version, "tool": "probe_ask", "outcome": "ok"}
    request = pair.peer.server.wait_for("request", **fields)
    return pair.peer.server.wait_for("upstream_retry", request_id=request["request_id"])


def together(peer: Peer, calls: int, tool: str) -> list[Json]:
    """The results of calls that are sent at once."""
    messages = [peer.message("tools/call", {"name": tool, "arguments": {}}) for _ in range(calls)]
    if peer.way.transport == "http":
        with ThreadPoolExecutor(calls) as threads:
            return [answer_of(response)["result"] for response in threads.map(peer.post, messages)]
    for message in messages:
        peer.server.send(message)
    return [peer.server.receive()["result"] for _ in messages]


@pytest.mark.parametrize(
    "fault",
    [
        Answer(503, body=b"s3cret"),
        Answer(408),
        Answer(425),
        Answer(500),
        Answer(502),
        Answer(504),
        Answer(429, headers={"Retry-After": "0"}),
        Answer(429, headers={"Retry-After": "-5"}),
        Answer(503, headers={"Retry-After": "whenever"}),
        Answer.reset(),
        Answer.reset(after=b'{"rate"'),
        Answer.truncated(b'{"rate"'),
        Answer.hang(),
        Answer(json={"rate": 1}, delay=5),
        Answer(json={"rate": 1}, pace=(1, 0.5)),
    ],
    ids=[
        "503",
        "408",
        "425",
        "500",
        "502",
        "504",
        "429-0",
        "429-negative",
        "503-garbage",
        "reset",
        "reset-midway",
        "truncated",
        "hang",
        "late",
        "slow-body",
    ],
)
def test_one_fault_does_not_fail_the_call(pair: Pair, fault: Answer) -> None:
    """The call is repeated, and the log says so in one line with the request's id."""
    pair.upstream.play(fault, WELL)
    answer = pair.peer.call("probe_ask")
    assert structured(answer) == {"rate": 1}
    assert len(pair.upstream.requests) == 2
    line = retry_of(pair, answer)
    assert (line["upstream"], line["attempt"], line["level"]) == ("service", 1, "warning")
    assert 0 <= line["wait_ms"] <= 200


def test_service_that_fails_for_ever(pair: Pair) -> None:
    """After the capped attempts the call fails, inside its deadline, and may be retried."""
    pair.upstream.play(Answer(503, body=b"s3cret", headers={"X-Where": "s3cret"}))
    error = pair.peer.error("probe_ask")
    assert (error["code"], error["retryable"], "retry_after_ms" in error) == ("upstream_unavailable", True, False)
    assert len(pair.upstream.requests) == 3
    assert error["message"] == "service answered with status 503. Retry later."
    failed = pair.peer.server.wait_for("upstream_failed", request_id=error["request_id"])
    assert (failed["reason"], failed["attempts"], failed["stopped_by"]) == ("status_503", 3, "attempts")


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "1"}, {"Date": "Sat, 31 Jan 2026 12:00:00 GMT", "Retry-After": "Sat, 31 Jan 2026 12:00:01 GMT"}],
    ids=["seconds", "date"],
)
def test_wait_that_the_service_asks_for(pair: Pair, headers: dict[str, str]) -> None:
    """It is waited for, and not longer."""
    pair.upstream.play(Answer(429, headers=headers), WELL)
    answer = pair.peer.call("probe_ask")
    structured(answer)
    first, second = pair.upstream.requests
    assert 1 <= second.at - first.at < 5
    assert retry_of(pair, answer)["wait_ms"] == 1000


@pytest.mark.parametrize("asked", ["3600", "Sat, 31 Jan 2026 13:00:00 GMT"])
def test_wait_that_is_too_long(pair: Pair, asked: str) -> None:
    """It fails at once, and the model is told when."""
    pair.upstream.play(Answer(429, headers={"Retry-After": asked, "Date": "Sat, 31 Jan 2026 12:00:00 GMT"}))
    error = pair.peer.error("probe_ask")
    assert (error["code"], error["retryable"], error["retry_after_ms"]) == ("upstream_unavailable", True, 3_600_000)
    assert "Retry after 3600 s." in error["message"]
    assert len(pair.upstream.requests) == 1
    assert pair.peer.logged(error["request_id"])["duration_ms"] < 1000


@pytest.mark.parametrize("fault", [Answer.hang(), Answer(503, delay=0.9)], ids=["hang", "503"])
def test_all_attempts_end_before_the_call(pair: Pair, fault: Answer) -> None:
    """A tool with less time than its attempts still ends in the service's error, and not in its own timeout."""
    pair.upstream.play(fault)
    error = pair.peer.error("probe_ask_briefly")
    assert error["code"] == "upstream_unavailable"
    assert pair.peer.logged(error["request_id"])["duration_ms"] < 2500


@pytest.mark.parametrize("tool", ["probe_ask", "probe_write"])
@pytest.mark.parametrize("status", [300, 400, 401, 403, 404, 409, 422, 499])
def test_refusal(pair: Pair, status: int, tool: str) -> None:
    """It is not repeated, nothing of it is told but the status, and a write that was refused took no effect."""
    pair.upstream.play(Answer(status, body=b"s3cret", headers={"WWW-Authenticate": "s3cret", "Retry-After": "1"}))
    error = pair.peer.error(tool)
    assert (error["code"], error["retryable"]) == ("upstream_rejected", False)
    assert str(status) in error["message"]
    assert "took effect" not in error["message"]
    assert len(pair.upstream.requests) == 1


def test_status_that_the_tool_takes(pair: Pair) -> None:
    """`accept` makes it an answer."""
    pair.upstream.play(Answer(404))
    assert structured(pair.peer.call("probe_ask_for_status")) == {"result": 404}


@pytest.mark.parametrize(
    ("answer", "code", "asked"),
    [
        (Answer(body=b"<html>s3cret</html>"), "upstream_unavailable", 1),
        (Answer(json={"rate": "s3cret"}), "upstream_unavailable", 1),
        (Answer(body=b"\xff\xfe\x00"), "upstream_unavailable", 1),
        (Answer(body=b"no gzip", headers={"Content-Encoding": "gzip"}), "upstream_unavailable", 3),
        (Answer(501), "upstream_unavailable", 1),
        (Answer(599), "upstream_unavailable", 1),
        (Answer.huge(50_000_000), "upstream_rejected", 1),
        (Answer.huge(MEBIBYTE - 1), "upstream_rejected", 1),
        (Answer.endless(), "upstream_rejected", 1),
        (Answer.gzip_bomb(64 << 20), "upstream_rejected", 1),
        (Answer(json={"rate": 1}, headers={"Content-Length": "12, 13"}), "upstream_unavailable", 3),
    ],
    ids=[
        *("no-json", "other-json", "no-text", "no-gzip", "501", "599"),
        *("huge", "one-byte-more", "endless", "gzip-bomb", "two-lengths"),
    ],
)
def test_answer_of_no_use(pair: Pair, answer: Answer, code: str, asked: int) -> None:
    """It is bounded, costs little memory, and nothing of it is told."""
    pair.upstream.play(WELL)
    structured(pair.peer.call("probe_ask"))
    before = most_memory(pair.peer.server)
    pair.upstream.play(answer)
    error = pair.peer.error("probe_ask")
    assert error["code"] == code
    assert len(pair.upstream.requests) == asked
    pair.upstream.wait_until_idle()  # whoever has no use for the rest hangs up
    assert most_memory(pair.peer.server) - before < 40_000  # of what is sent


def test_largest_answer(pair: Pair) -> None:
    """It is read."""
    pair.upstream.play(Answer.huge(MEBIBYTE - 2))
    assert structured(pair.peer.call("probe_ask")) == {}


@pytest.mark.parametrize(("status", "is_outage"), [(429, False), (499, False), (500, True), (503, True), (599, True)])
def test_status_that_the_breaker_counts(status: int, is_outage: bool) -> None:
    """What is the service's own fault."""
    assert NoAnswer("status", "answered", status=status).is_outage == is_outage


def test_answer_that_is_logged() -> None:
    """A tool that logs it gives nothing of it away."""
    again = httpx2.Request("GET", "http://127.0.0.1/?key=s3cret")
    answer = Response("service", 302, httpx2.Headers({"x": "s3cret"}), b"s3cret", again)
    assert repr(answer) == "Response(upstream='service', status=302)"


def test_limits_unless_others_are_set() -> None:
    """As the README has them."""
    limits = Limits()
    assert (limits.attempts, limits.attempt_seconds, limits.largest_answer) == (3, 10, MEBIBYTE)
    assert (limits.connect_seconds, limits.first_wait_seconds, limits.longest_wait_seconds) == (3, 0.2, 5)
    assert (limits.retry_share, limits.retries_per_second, limits.retry_reserve) == (0.2, 1, 20)
    assert (limits.breaker_least, limits.breaker_rate) == (20, 0.5)
    assert (limits.breaker_window_seconds, limits.breaker_rest_seconds) == (30, 5)


def most_memory(server: Server) -> int:
    """The most that the process ever held, in kB; 0 where the system does not say."""
    status = Path(f"/proc/{server.process.pid}/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text(encoding="ascii")) if status.exists() else None
    return int(found[1]) if found else 0


@pytest.mark.parametrize("way_there", ["/v1/thing", "thing", "/elsewhere"])
def test_redirect_within_the_service(pair: Pair, way_there: str) -> None:
    """It is followed, with the credential."""
    pair.upstream.play(Answer.redirect(way_there), WELL)
    assert structured(pair.peer.call("probe_ask")) == {"rate": 1}
    assert pair.upstream.requests[1].headers["authorization"] == f"Bearer {TOKEN}"


def test_redirect_loop(pair: Pair) -> None:
    """It ends."""
    pair.upstream.play(Answer.redirect("/v1/thing"))
    assert pair.peer.error("probe_ask")["code"] == "upstream_rejected"
    assert len(pair.upstream.requests) == 6


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has one loopback address only")
def test_credential_goes_to_no_other_host(pair: Pair, host: str) -> None:
    """A redirect to another host, or another port, is refused: nothing is sent there."""
    with FaultyUpstream(host) as other:
        pair.upstream.play(Answer.redirect(f"{other.base_url}/v1/thing"))
        error = pair.peer.error("probe_ask")
        assert error["code"] == "upstream_rejected"
        assert other.connections == 0


@pytest.mark.parametrize(
    "address", ["http://xn--a..b/", f"http://xn--{'a' * 80}/", "http://[::1", "http://a:b/", "\\\\x"]
)
def test_redirect_to_what_is_no_address(pair: Pair, address: str) -> None:
    """It is the service's error, and no crash."""
    pair.upstream.play(Answer.redirect(address))
    error = pair.peer.error("probe_ask")
    assert (error["code"], error["retryable"]) == ("upstream_rejected", False)


def test_redirect_of_a_write(pair: Pair) -> None:
    """It is not followed: some would turn it into a read, others would send it twice."""
    pair.upstream.play(Answer.redirect("/v1/other", 307))
    assert pair.peer.error("probe_write")["code"] == "upstream_rejected"
    assert len(pair.upstream.requests) == 1


@pytest.mark.parametrize("fault", [Answer(503), Answer.reset(), Answer.hang()], ids=["503", "reset", "hang"])
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_write_without_a_key_is_sent_once(pair: Pair, method: str, fault: Answer) -> None:
    """Nobody knows whether it took effect, and that is what the error says."""
    pair.upstream.play(fault)
    error = pair.peer.error("probe_write", method=method)
    assert [request.method for request in pair.upstream.requests] == [method]
    assert (error["code"], error["retryable"]) == ("upstream_unavailable", False)
    assert "It is not known whether it took effect" in error["message"]


def test_write_with_a_key_is_repeated(pair: Pair) -> None:
    """The same key and the same body each time."""
    pair.upstream.play(Answer(503), Answer.reset(), Answer(201))
    assert structured(pair.peer.call("probe_write", key="order-0001")) == {"result": 201}
    assert [request.headers["idempotency-key"] for request in pair.upstream.requests] == ["order-0001"] * 3
    assert [request.json for request in pair.upstream.requests] == [{"a": 1}] * 3


def test_write_of_an_idempotent_tool(pair: Pair) -> None:
    """PUT is repeated there, and repeating the call is safe."""
    pair.upstream.play(Answer(503))
    error = pair.peer.error("probe_replace")
    assert len(pair.upstream.requests) == 3
    assert error["retryable"]
    assert "repeating the same call is safe" in error["message"]


def test_what_the_service_gets(pair: Pair) -> None:
    """This server's own credential and name, and no cookie of an earlier answer."""
    pair.upstream.play(Answer(json={"rate": 1}, headers={"Set-Cookie": "session=somebody; Path=/"}))
    structured(pair.peer.call("probe_ask"))
    structured(pair.peer.call("probe_ask"))
    structured(pair.peer.call("probe_other_header"))
    first, second, third = pair.upstream.requests
    assert first.path == "/v1/thing"
    assert first.headers["authorization"] == f"Bearer {TOKEN}"
    assert "cookie" not in second.headers
    assert (third.headers["x-key"], third.headers.get("authorization")) == (TOKEN, None)


def test_identical_reads_at_once(pair: Pair) -> None:
    """With `share` they are one for the service."""
    pair.upstream.play(Answer(json={"rate": 1}, delay=0.5))
    results = together(pair.peer, 8, "probe_ask_together")
    assert [result["structuredContent"] for result in results] == [{"rate": 1}] * 8
    assert [request.query for request in pair.upstream.requests] == [{"of": "all"}]


def test_nothing_of_the_service_is_told(pair: Pair) -> None:
    """No address, query, credential, header or body: neither to the caller nor in the log, at DEBUG too."""
    pair.upstream.play(Answer(500, body=b"planted-b0dy", headers={"X-Planted": "planted-h3ader"}))
    answer = pair.peer.call("probe_ask_together")
    said = str(answer) + b"".join(pair.peer.server.stderr).decode()
    for secret in (pair.upstream.base_url.rpartition(":")[2], "of=all", "planted", TOKEN):
        assert secret not in said.replace(pair.peer.url if pair.peer.way.transport == "http" else "", "")


def test_what_is_measured(way: Way, start_peer: StartPeer, upstream: FaultyUpstream) -> None:
    """Attempts by what came of them, retries, and the breaker: by the service's name, and nothing else of it."""
    peer = start_peer(way, upstream_base_url=upstream.base_url, metrics_port="0")
    upstream.play(Answer(503), WELL)
    structured(peer.call("probe_ask"))
    upstream.play(Answer.reset())
    for _ in range(4):
        peer.error("probe_fragile")
    with httpx2.Client(trust_env=False) as scraper:
        text = scraper.get(peer.server.wait_for("metrics_listening")["url"]).text
    for line in (
        'mcp_upstream_request_duration_seconds_count{result="status_503",upstream="service"} 1.0',
        'mcp_upstream_request_duration_seconds_count{result="ok",upstream="service"} 1.0',
        'mcp_upstream_request_duration_seconds_count{result="broken_off",upstream="fragile"} 4.0',
        'mcp_upstream_retries_total{upstream="service"} 1.0',
        'mcp_upstream_breaker_open{upstream="service"} 0.0',
        'mcp_upstream_breaker_open{upstream="fragile"} 1.0',
        'mcp_upstream_requests_in_flight{upstream="service"} 0.0',
    ):
        assert line in text.splitlines(), text
    assert upstream.base_url not in text


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_this_machine_is_reached_through_no_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str
) -> None:
    """A proxy of the environment's would get what is sent, the credential included; it is for other machines."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FaultyUpstream("127.0.0.2") as service, socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        proxy.setblocking(False)
        declared = upstream_of("rates", base_url="upstream_base_url", token="upstream_token", limits=Limits(attempts=1))

        async def ask(url: str, seconds: float) -> None:
            settings = load_settings({"upstream_base_url": url, "upstream_token": TOKEN})
            async with declared.open(settings) as rates:
                with anyio.move_on_after(seconds), suppress(UpstreamUnavailable):
                    await rates.request("POST", "/orders")

        port = service.base_url.rpartition(":")[2] if scheme == "http" else "1"
        for host in ("127.0.0.2", "localhost", "[::1]"):
            await ask(f"{scheme}://{host}:{port}", 20)
        assert len(service.requests) == (scheme == "http")
        with pytest.raises(BlockingIOError):
            proxy.accept()
        await ask(f"{scheme}://rates.test", 1)
        with nullcontext() if variable.lower().startswith((f"{scheme}_", "all")) else pytest.raises(BlockingIOError):
            proxy.accept()[0].close()


def test_callers_credential_stays_here(start: Start, upstream: FaultyUpstream, tmp_path: Path) -> None:
    """A caller's key opens this server, and is sent nowhere else."""
    file = tmp_path / "keys.json"
    key = run_command("keys", "new", "--name", "tests", settings={"MCP_API_KEYS_FILE": str(file)}).stdout.strip()
    settings = {"MCP_UPSTREAM_BASE_URL": upstream.base_url, "MCP_AUTH_MODE": "api_key", "MCP_API_KEYS_FILE": str(file)}
    server = start(*SERVE_HTTP, settings=settings)
    for way in (Way("http", "2026-07-28"), Way("http", "2025-11-25")):
        peer = Peer(way, server)
        upstream.play(WELL)
        called = peer.message("tools/call", {"name": "probe_ask", "arguments": {}})
        assert structured(answer_of(peer.post(called, {"Authorization": f"Bearer {key}"}))) == {"rate": 1}
        peer.http.close()
        assert key not in str(upstream.requests[0].headers.multi_items())
        assert "authorization" not in upstream.requests[0].headers


def test_life_of_the_breaker(way: Way, start_peer: StartPeer, upstream: FaultyUpstream) -> None:
    """It opens on failures, is seen in readiness and the log, spares the service, and one probe closes it."""
    peer = start_peer(way, upstream_base_url=upstream.base_url)
    upstream.play(Answer(500))
    for _ in range(4):
        assert "status 500" in peer.error("probe_fragile")["message"]
    opened = peer.server.wait_for("breaker_changed", upstream="fragile", state="open")
    assert opened["level"] == "warning"
    upstream.play(Answer(json={"rate": 1}, delay=0.3))
    error = peer.error("probe_fragile")
    assert (error["code"], error["retryable"], upstream.requests) == ("upstream_unavailable", True, [])
    assert 0 < error["retry_after_ms"] <= 2000
    assert structured(peer.call("probe_ask")) == {"rate": 1}, "other services are not concerned"
    if way.transport == "http":
        ready = peer.http.get(peer.server.url.removesuffix("/mcp") + "/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
        assert ready.json()["checks"]["fragile"] == "failed"
    upstream.play(Answer(json={"rate": 1}, delay=0.3))
    while not upstream.requests:
        results = together(peer, 8, "probe_fragile")
        time.sleep(0.05)  # its rest is two seconds
    assert len(upstream.requests) == 1, "one probe, however many ask"
    assert sorted(result["isError"] for result in results) == [False] + [True] * 7
    assert peer.server.wait_for("breaker_changed", upstream="fragile", state="closed")
    assert not any(result["isError"] for result in together(peer, 8, "probe_fragile"))


def test_probe_that_fails_lets_it_rest_longer(way: Way, start_peer: StartPeer, upstream: FaultyUpstream) -> None:
    """Twice as long as before."""
    peer = start_peer(way, upstream_base_url=upstream.base_url)
    upstream.play(Answer.reset())
    for _ in range(4):
        peer.error("probe_fragile")
    while len(upstream.requests) < 5:
        error = peer.error("probe_fragile")
        time.sleep(0.05)  # its rest is two seconds
    assert "broke off" in error["message"]
    assert 2000 < peer.error("probe_fragile")["retry_after_ms"] <= 4000


def test_service_that_is_not_configured(way: Way, start_peer: StartPeer) -> None:
    """Its tools say which setting is missing, and everything else works."""
    peer = start_peer(way)
    error = peer.error("probe_ask")
    assert (error["code"], error["retryable"]) == ("upstream_unavailable", False)
    assert "MCP_UPSTREAM_BASE_URL" in error["message"]
    assert peer.call("probe_list")["result"]["isError"] is False
    if way.transport == "http":
        assert peer.http.get(peer.server.url.removesuffix("/mcp") + "/readyz").json()["status"] == "ok"


def test_service_that_cannot_be_reached_at_start(way: Way, start_peer: StartPeer) -> None:
    """That is not fatal: it may come later."""
    with FaultyUpstream() as gone:
        address = gone.base_url
    peer = start_peer(way, upstream_base_url=address)
    error = peer.error("probe_ask")
    assert (error["code"], error["message"]) == ("upstream_unavailable", "service cannot be reached. Retry later.")
    assert peer.call("probe_list")["result"]["isError"] is False


@pytest.mark.parametrize(
    "address",
    [
        *("rates.example.com", "ftp://rates.example.com", "https://", "http://:80", "http://rates.example.com:port"),
        *("http://rates.example.com:99999", "http://user:hunter22@rates.example.com", "http://rates.example.com?key=x"),
        *("http://rates.example.com#x", "http://rates example.com", "http://[::1", "file:///etc/passwd", "http://a\\b"),
    ],
)
def test_base_url_that_is_none(address: str) -> None:
    """It stops the start with a line that says what an address looks like, and does not show it."""
    done = run_command(settings={"MCP_UPSTREAM_BASE_URL": address})
    assert done.returncode == 2
    assert "MCP_UPSTREAM_BASE_URL: " in done.stderr
    assert "hunter22" not in done.stderr


def test_token_is_a_secret(tmp_path: Path, way: Way, start_peer: StartPeer, upstream: FaultyUpstream) -> None:
    """It can come from a file."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="ascii")
    peer = start_peer(way, upstream_base_url=upstream.base_url, upstream_token_file=str(file))
    upstream.play(WELL)
    structured(peer.call("probe_ask"))
    assert upstream.requests[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in os.fsdecode(b"".join(peer.server.stderr))
