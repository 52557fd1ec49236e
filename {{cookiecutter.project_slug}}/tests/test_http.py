"""The HTTP edge: probes, and refusals that are JSON like every other error."""

import contextlib
import json
import re
import select
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from .conftest import Start, StartPeer
from .harness import (
    HTTP,
    LEGACY,
    MODERN,
    PACKAGE,
    PATIENCE,
    SERVE_HTTP,
    STDIO,
    Peer,
    Server,
    Way,
    answer_of,
    extended,
    rest_of,
    run_command,
    until,
)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("way", HTTP, ids=str)
def test_probes_answer_in_json(peer: Peer, path: str) -> None:
    """They stand outside Host checks and the request log."""
    answer = peer.http.get(peer.url.replace("/mcp", path), headers={"Host": "10.0.0.7"})
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert "server" not in answer.headers


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_address_of_ipv6(start: Start, way: Way) -> None:
    """It is listened on, and written as URLs have it."""
    if not socket.has_ipv6:
        pytest.skip("this Python has no IPv6")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    peer = Peer(way, start(*SERVE_HTTP, settings={"MCP_HOST": "::1"}))
    assert re.fullmatch(r"http://\[::1\]:\d+/mcp", peer.url)
    assert peer.call("probe_reached")["result"]["isError"] is False
    peer.http.close()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"junk", {}, 400),
        (b"[]", {}, 400),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', {}, 400),
        (b'{"jsonrpc": "2.0", "id": 1}', {}, 400),
        (b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', {}, 400),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}', {}, 400),
        (b'{"jsonrpc": "2.0", "id": [1], "method": "ping"}', {}, 400),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": [NaN]}', {}, 400),
        (b"[" * 100_000, {}, 400),
        (b'\xff{"jsonrpc": "2.0"}', {}, 400),
        (b"{}", {"Accept": "text/html"}, 406),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Host": "evil.example.com"}, 421),
        (b"{}", {"Host": "127.0.0.1.evil.example.com"}, 421),
        (b"{}", {"Host": "127.0.0.1:80@evil.example.com"}, 421),
        (b"{}", {"Origin": "https://evil.example.com"}, 403),
        (b"{}", {"Origin": "null"}, 403),
        (b"x" * 2_000_000, {}, 413),
    ],
)
@pytest.mark.parametrize("way", HTTP, ids=str)
def test_refusal_at_the_edge(peer: Peer, body: bytes, headers: dict[str, str], status: int) -> None:
    """It has the fitting status, a JSON body with the members every error has, and a line in the log."""
    answer = peer.post(body, headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["data"]["code"] == "invalid_request"
    assert "pydantic" not in answer.text
    line = peer.logged(error["data"]["request_id"])
    assert (line["outcome"], line["duration_ms"], line["client"]) == ("invalid_request", 0, "127.0.0.1")


@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("way", HTTP, ids=str)
def test_largest_message(start_peer: StartPeer, way: Way, chunked: bool, excess: int) -> None:
    """It is served, and one of a byte more is not, whether its length is said or not."""
    peer = start_peer(way, max_request_bytes="4096")
    message = peer.message("tools/list")
    body = json.dumps(message).encode().ljust(4096 + excess)
    chunks = iter([body[:4096], body[4096:]][: 1 + excess])
    answer = peer.http.post(peer.url, content=chunks if chunked else body, headers=peer.headers(message))
    assert answer.status_code == (413 if excess else 200)


@pytest.mark.parametrize(("length", "status"), [("2000000", 413), ("9" * 19, 413), ("9" * 40, 400)])
@pytest.mark.parametrize("way", HTTP[:1], ids=str)
def test_length_beyond_the_limit(peer: Peer, length: str, status: int) -> None:
    """It is refused before any of the body has come."""
    head = request(b"").replace(b"Content-Length: 0", f"Content-Length: {length}".encode())
    address = httpx2.URL(peer.url)
    with socket.create_connection((address.host, address.port or 0), timeout=5) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_response_of_a_client(peer: Peer, way: Way) -> None:
    """In 2026-07-28 a server asks nothing, so it is no message there; before, it is accepted."""
    answer = peer.post(b'{"jsonrpc": "2.0", "id": 1, "result": {}}')
    assert answer.status_code == (400 if way == HTTP[0] else 202)
    if way == HTTP[0]:
        assert (answer.json()["id"], answer.json()["error"]["data"]["code"]) == (1, "invalid_request")


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_unknown_protocol_version(peer: Peer) -> None:
    """The versions that are served are named."""
    message = peer.message("ping", {"_meta": {"io.modelcontextprotocol/protocolVersion": "2099-01-01"}})
    message["params"]["_meta"].setdefault("io.modelcontextprotocol/clientCapabilities", {})
    answer = peer.post(message, {"MCP-Protocol-Version": "2099-01-01", "Mcp-Method": "ping"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], answer.json()["id"]) == (400, -32022, message["id"])
    assert error["data"]["supported"] == [MODERN, *reversed(HANDSHAKE_PROTOCOL_VERSIONS)]
    assert error["data"]["code"] == "invalid_request"
    notification = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    answer = peer.post(notification | {"params": {}}, {"MCP-Protocol-Version": "2099-01-01"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, -32022)


def raw(peer: Peer, data: bytes) -> bytes:
    """Everything that a connection answers until the server closes it."""
    address = httpx2.URL(peer.url)
    with socket.create_connection((address.host, address.port or 0), timeout=PATIENCE) as connection:
        connection.sendall(data)
        return rest_of(connection)


def request(body: bytes, *lines: str) -> bytes:
    """The bytes of a POST."""
    head = ["POST /mcp HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Accept: */*", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


PING = b'{"jsonrpc": "2.0", "id": "p", "method": "ping"}'


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
def test_what_is_no_http(peer: Peer) -> None:
    """It is refused in JSON and the connection closed, after the answers that are owed on it."""
    for bad in (
        b"\x16\x03\x01\r\n\r\n",
        request(PING, "Transfer-Encoding: chunked"),
        request(PING, "Content-Length: 5"),
    ):
        for owed in (b"", request(PING)):
            answer = raw(peer, owed + bad)
            assert answer.count(b"HTTP/1.1 200 OK") == bool(owed)
            assert bool(owed) or answer.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json")
    assert raw(peer, b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000).startswith(b"HTTP/1.1 431")
    assert peer.call("probe_reached")["result"]["isError"] is False


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
@pytest.mark.parametrize("line", ["Host: 127.0.0.1", "Content-Type: text/plain", "MCP-Protocol-Version: 2025-11-25"])
def test_header_that_stands_twice(peer: Peer, line: str) -> None:
    """Two readers could read it differently: it is refused."""
    first = "MCP-Protocol-Version: 2025-06-18"
    assert raw(peer, request(PING, first, line, "Connection: close")).startswith(b"HTTP/1.1 400 Bad Request")


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
def test_trailers_are_no_headers(peer: Peer) -> None:
    """They come after the body, past every proxy; without end they are cut."""
    lines = ("Host: 127.0.0.1", "Accept: */*", "Transfer-Encoding: chunked", "Connection: close")
    head = "\r\n".join(["POST /mcp HTTP/1.1", *lines, "", ""]).encode()
    chunks = b"%x\r\n%b\r\n0\r\n" % (len(PING), PING)
    assert raw(peer, head + chunks + b"Content-Type: application/json\r\n\r\n").startswith(b"HTTP/1.1 415")
    endless = raw(
        peer, head.replace(b"Host", b"Content-Type: application/json\r\nHost") + chunks + b"X: y\r\n" * 20_000
    )
    assert endless.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_body_whose_length_is_not_said(peer: Peer, way: Way) -> None:
    """It is counted while it comes, and refused when it is too long."""
    answer = peer.http.post(peer.url, content=iter([b" " * 300_000] * 7), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (413, "invalid_request")


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
def test_offer_of_another_protocol_is_ignored(peer: Peer) -> None:
    """Java's client offers HTTP/2 with its first request, whose body is not lost for that."""
    answer = raw(
        peer, request(PING, "Connection: close, Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
    )
    assert answer.endswith(b'{"jsonrpc":"2.0","id":"p","result":{}}')


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
def test_client_that_is_too_slow(peer: Peer) -> None:
    """Whoever sends nothing, half a request, or a byte a second is cut after ten seconds; others are served meanwhile."""

    def drip(connection: socket.socket) -> bytes:
        with contextlib.suppress(OSError):
            for byte in PING:
                connection.sendall(bytes([byte]))
                if select.select([connection], [], [], 1)[0]:
                    break
        return connection.recv(65536)

    address = httpx2.URL(peer.url)
    begun = [b"", b"POST /mcp HTTP/1.1\r\nHost", request(PING)[: -len(PING)]]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        connections = [socket.create_connection((address.host, address.port or 0), PATIENCE) for _ in begun]
        for connection, data in zip(connections, begun, strict=True):
            stack.enter_context(connection).sendall(data)
        silent, half, dripping = (
            pool.submit(one, c) for one, c in zip((receive, receive, drip), connections, strict=True)
        )
        assert peer.call("probe_reached")["result"]["isError"] is False
        assert silent.result() == b""
        assert half.result().startswith(b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json")
        assert dripping.result().startswith(b"HTTP/1.1 408 Request Timeout")


def receive(connection: socket.socket) -> bytes:
    """What comes first."""
    return connection.recv(65536)


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_methods(peer: Peer, way: Way) -> None:
    """What a path is not for is refused, and the answer says what it is for."""
    headers = {"MCP-Protocol-Version": way.version, "Accept": "text/event-stream"}
    for method, path in [("PUT", "/mcp"), ("DELETE", "/mcp"), ("OPTIONS", "/mcp"), ("POST", "/readyz"), ("POST", "/")]:
        answer = peer.http.request(method, peer.url.replace("/mcp", path), headers=headers)
        assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (405, "invalid_request"), (method, path)
        assert answer.headers["allow"] == ("GET, HEAD" if path != "/mcp" else "POST" if way == HTTP[0] else "GET, POST")
    assert peer.http.head(peer.url.replace("/mcp", "/readyz")).status_code == 200
    if way != HTTP[0]:
        answer = peer.http.get(peer.url, headers=headers | {"Accept": "application/json"})
        assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (406, "invalid_request")


@pytest.mark.parametrize("way", HTTP[:1], ids=str)
def test_page_for_a_browser(peer: Peer) -> None:
    """It says what this is and how to connect, and nothing that a stranger wrote."""
    page = peer.http.get(peer.url.replace("/mcp", "/"))
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<code>{peer.url}</code>" in page.text
    strange = peer.http.get(peer.url.replace("/mcp", "/"), headers={"Host": "<script>"})
    assert (strange.status_code, "<script>" in strange.text) == (421, False)


def test_page_names_the_address_that_clients_use(start_peer: StartPeer) -> None:
    """Behind a proxy it is another one than the server's own."""
    peer = start_peer(HTTP[0], public_url="https://tools.example.com/x/mcp")
    assert "<code>https://tools.example.com/x/mcp</code>" in peer.http.get(peer.url.replace("/mcp", "/")).text


@pytest.mark.parametrize(("trusted", "client"), [("", "127.0.0.1"), ("127.0.0.1,10.0.0.0/8", "192.0.2.7")])
def test_address_of_the_client(start_peer: StartPeer, trusted: str, client: str) -> None:
    """A proxy is believed if it is trusted, and only as far as the chain of trusted ones goes."""
    peer = start_peer(HTTP[0], trusted_proxies=trusted)
    message = peer.message("tools/list")
    assert peer.post(message, {"X-Forwarded-For": "6.6.6.6, 192.0.2.7, 10.1.2.3"}).status_code == 200
    assert peer.server.wait_for("request", rpc_id=message["id"])["client"] == client


def test_readiness_follows_what_tools_depend_on(start_peer: StartPeer) -> None:
    """A check that fails or hangs turns readiness off, is logged once, and leaves liveness alone."""
    peer = start_peer(HTTP[0])
    ready, alive = peer.url.replace("/mcp", "/readyz"), peer.url.replace("/mcp", "/livez")
    name = "serving.open_store"
    for health, said in [("well", "ok"), ("failing", "failed"), ("hanging", "timeout"), ("well", "ok")]:
        peer.call("probe_store", health=health)
        time.sleep(1.1)  # a check is good for a second
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: peer.http.get(ready), range(8)))
        status, code = ("ok", 200) if said == "ok" else ("unavailable", 503)
        assert {answer.status_code for answer in answers} == {code}
        found = answers[0].json()
        assert (found["status"], found["checks"][name]) == (status, said)
        assert "secret address" not in answers[0].text
        assert peer.http.get(alive).status_code == 200
    assert peer.call("probe_store", health="well")["result"]["structuredContent"]["result"] <= 6
    peer.server.wait_for("dependency_recovered", dependency=name)
    log = [(e["event"], e.get("problem")) for e in peer.server.log if e.get("dependency") == name]
    assert log == [("dependency_failing", "failed"), ("dependency_recovered", None)]
    peer.server.process.terminate()
    assert peer.server.process.wait(5) == 0
    peer.server.wait_for("store_closed")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_stop_shows_although_a_check_has_no_end(start_peer: StartPeer) -> None:
    """What the check says of a server that is to stop is of no interest any more."""
    peer = start_peer(HTTP[0], drain_delay_seconds=str(PATIENCE))
    peer.call("probe_store", health="hanging")
    time.sleep(1.1)  # a check is good for a second
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(peer.http.get, peer.url.replace("/mcp", "/readyz"))
        time.sleep(0.3)
        peer.server.process.terminate()
        answer = asked.result()
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})


SLOW = """
@asynccontextmanager
async def open_slowly(settings):
    await anyio.sleep(1.5)
    yield 1


@tool()
async def probe_slow_start(one: Annotated[int, Depends(open_slowly)]) -> int:
    \"\"\"Depend on what takes its time to open.\"\"\"
    return one
"""


def test_probes_while_the_server_starts(source: Path, tmp_path: Path, start: Start) -> None:
    """It is alive, not ready, and refuses calls with a hint when to come back, until everything is open."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    copy = extended(source, tmp_path, SLOW)
    server = start("serve", "--transport", "http", "--port", str(port), source=copy)
    root = f"http://127.0.0.1:{port}"
    with httpx2.Client(trust_env=False) as http:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(httpx2.ConnectError):
                answer = http.get(f"{root}/readyz")
                break
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.json()) == (503, {"status": "starting"})
        assert http.get(f"{root}/livez").status_code == 200
        headers = {"Content-Type": "application/json", "Accept": "*/*"}
        refused = http.post(f"{root}/mcp", content=PING, headers=headers)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == 503
        said = refused.json()["error"]["data"]
        assert (said["code"], said["retryable"], said["retry_after_ms"]) == ("unavailable", True, 1000)
        server.wait_for("listening")
        assert http.get(f"{root}/readyz").status_code == 200
        assert http.post(f"{root}/mcp", content=PING, headers=headers).status_code == 200


BROKEN = f"""
from {PACKAGE}.serving.edge import Edge


async def _post(*_):
    raise ValueError("s3cret")


Edge._post = _post
"""


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_fault_of_the_edge_itself(source: Path, tmp_path: Path, start: Start, way: Way) -> None:
    """It is answered in JSON, nothing of it is told, and its place is logged."""
    peer = Peer(way, start(*SERVE_HTTP, source=extended(source, tmp_path, BROKEN)))
    answer = peer.post(peer.message("tools/list"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, -32603)
    told = answer.json()["error"]["data"]
    assert (told["code"], told["message"]) == ("internal", answer.json()["error"]["message"])
    assert told["request_id"] in told["message"]
    assert "s3cret" not in answer.text
    assert "_post" in str(peer.server.wait_for("crash", request_id=told["request_id"])["exception"]["at"])
    assert peer.http.get(peer.url.replace("/mcp", "/livez")).status_code == 200
    peer.http.close()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_stop_while_the_server_starts(source: Path, tmp_path: Path, start: Start) -> None:
    """There is nothing to drain, and what is being opened is not waited for."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    copy = extended(source, tmp_path, SLOW.replace("1.5", str(2 * PATIENCE)))
    server = start("serve", "--transport", "http", "--port", str(port), source=copy)

    def is_alive() -> bool:
        with contextlib.suppress(httpx2.ConnectError):
            return httpx2.get(f"http://127.0.0.1:{port}/livez", trust_env=False).status_code == 200
        return False

    until(is_alive)
    server.process.terminate()
    assert server.process.wait(10) == 0


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_path_that_is_not_there(peer: Peer) -> None:
    """It is answered in JSON too."""
    answer = peer.http.get(peer.url.replace("/mcp", "/admin"))
    assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (404, "invalid_request")


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_privileged_tool_over_http(peer: Peer) -> None:
    """Where no credentials are taken, nobody has a scope, and the message says who can change that."""
    error = peer.error("probe_privileged")
    assert error["code"] == "forbidden"
    assert "MCP_AUTH_MODE" in error["message"]


def test_local_scopes_do_not_reach_http(start: Start) -> None:
    """A caller over HTTP is nobody's local user."""
    server = start(*SERVE_HTTP, settings={"MCP_LOCAL_SCOPES": "probe:use,probe:more"})
    for way in HTTP:
        peer = Peer(way, server)
        assert peer.error("probe_privileged")["code"] == "forbidden"
        peer.http.close()


@pytest.mark.parametrize("way", STDIO, ids=str)
def test_local_scopes_on_stdio(start: Start, way: Way) -> None:
    """None or some of what is needed: forbidden, and the message says how to get the rest. All: served."""
    assert Peer(way, start()).error("probe_privileged")["code"] == "forbidden"
    error = Peer(way, start(settings={"MCP_LOCAL_SCOPES": "probe:use"})).error("probe_privileged")
    assert error["code"] == "forbidden"
    assert "MCP_LOCAL_SCOPES=probe:more,probe:use" in error["message"]
    served = Peer(way, start(settings={"MCP_LOCAL_SCOPES": "probe:use, probe:more"})).call("probe_privileged")
    assert served["result"]["structuredContent"] == {"result": "done"}


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
@pytest.mark.parametrize("version", HANDSHAKE_PROTOCOL_VERSIONS)
def test_handshake_agrees_on_the_version_asked_for(peer: Peer, version: str) -> None:
    """Each of the revisions that have one; the newest of them for one that is not known."""
    for asked, agreed in ((version, version), ("1999-01-01", LEGACY)):
        hello = {"protocolVersion": asked, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
        message = peer.message("initialize", hello)
        assert answer_of(peer.post(message))["result"]["protocolVersion"] == agreed
        assert peer.server.wait_for("request", method="initialize", rpc_id=message["id"], protocol_version=agreed)


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
def test_stream_for_what_the_server_sends_on_its_own(peer: Peer) -> None:
    """It stays open, though without sessions nothing comes on it: clients open it again and again otherwise."""
    headers = peer.headers(b"") | {"Accept": "text/event-stream"}
    with peer.http.stream("GET", peer.url, headers=headers, timeout=1) as stream:
        assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream")
        with pytest.raises(httpx2.ReadTimeout):
            stream.read()


PINGS = f"""
from {PACKAGE}.serving import exchange

exchange.PING_SECONDS = 0.2
"""


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_stream_that_is_silent(source: Path, tmp_path: Path, start: Start, way: Way) -> None:
    """It carries a comment every now and then, as proxies close what is silent."""
    peer = Peer(way, start(*SERVE_HTTP, source=extended(source, tmp_path, PINGS)))
    answer = peer.post(peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": 1}}))
    assert answer.text.count("\n: ping\n\n") + answer.text.startswith(": ping\n\n") >= 2
    assert answer_of(answer)["result"]["structuredContent"] == {"result": "done"}
    if way != HTTP[0]:
        headers = peer.headers(b"") | {"Accept": "text/event-stream"}
        with peer.http.stream("GET", peer.url, headers=headers) as stream:
            lines = stream.iter_lines()
            assert [next(lines) for _ in range(5)] == [": open", "", ": ping", "", ": ping"]
    peer.http.close()


@pytest.mark.parametrize("sessions", ["stateless", "stateful"])
def test_legacy_sessions(start: Start, sessions: str) -> None:
    """`stateful` gives legacy clients a session; stateless needs none."""
    server = start(*SERVE_HTTP, settings={"MCP_HTTP_SESSIONS": sessions})
    peer = Peer(HTTP[1], server)
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    answer = peer.post(peer.message("initialize", hello))
    assert ("mcp-session-id" in answer.headers) == (sessions == "stateful")
    answer = peer.post(peer.message("tools/list"))  # without the session
    assert answer.status_code == (400 if sessions == "stateful" else 200)
    if sessions == "stateful":
        error = answer.json()["error"]
        assert (error["data"]["code"], error["data"]["message"]) == ("invalid_request", error["message"])
        assert error["message"] not in ("", "Bad Request"), "the SDK's own words"
        assert peer.logged(error["data"]["request_id"])["client"] == "127.0.0.1"
        assert not error["message"].startswith("{"), "the SDK's own answer, not a part of it"
    peer.http.close()


def test_healthcheck_follows_the_server(start: Start) -> None:
    """It exits 0 while the server is ready, and 1 when it is not or is gone."""
    server = start(*SERVE_HTTP, settings={"MCP_DRAIN_DELAY_SECONDS": str(PATIENCE)})
    port = str(httpx2.URL(server.url).port)
    settings = {"MCP_TRANSPORT": "http", "MCP_PORT": port}
    assert run_command("healthcheck", settings=settings).returncode == 0
    server.process.terminate()
    server.wait_for("draining")
    assert run_command("healthcheck", settings=settings).returncode == 1
    server.process.terminate()
    server.finish()
    assert run_command("healthcheck", settings=settings).returncode == 1


def test_healthcheck_on_stdio() -> None:
    """There it says whether this configuration starts; a bad one is unhealthy, not a third state."""
    assert run_command("healthcheck").returncode == 0
    assert run_command("healthcheck", settings={"MCP_PORT": "x"}).returncode == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_it_with_zero(start: Start, number: signal.Signals) -> None:
    """An idle server closes what it opened and exits 0."""
    server = start(*SERVE_HTTP)
    server.wait_for("listening")
    server.process.send_signal(number)
    assert server.process.wait(5) == 0
    server.wait_for("stopped")


def test_port_in_use(start: Start, source: object) -> None:
    """One line names the settings and the reason."""
    port = str(httpx2.URL(start(*SERVE_HTTP).url).port)
    done = run_command("serve", "--transport", "http", "--port", port, source=source)  # type: ignore[arg-type]
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert json.loads(line)["event"].startswith("MCP_HOST, MCP_PORT: cannot listen on 127.0.0.1:")


def test_servers_share_nothing() -> None:
    """Two servers on free ports run side by side."""
    with Server(*SERVE_HTTP) as one, Server(*SERVE_HTTP) as other:
        assert one.url != other.url
