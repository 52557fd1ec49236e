"""The HTTP edge: probes, and refusals that are JSON like every other error."""

import json
import signal
import sys

import httpx2
import pytest

from .conftest import Start
from .harness import HTTP, SERVE_HTTP, STDIO, Peer, Server, Way, run_command


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("way", HTTP, ids=str)
def test_probes_answer_in_json(peer: Peer, path: str) -> None:
    """They stand outside Host checks and the request log."""
    answer = peer.http.get(peer.url.replace("/mcp", path), headers={"Host": "10.0.0.7"})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"junk", {}, 400),
        (b"[]", {}, 400),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', {}, 400),
        (b'{"jsonrpc": "2.0", "id": 1}', {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{}", {"Host": "evil.example.com"}, 421),
        (b"{}", {"Host": "127.0.0.1.evil.example.com"}, 421),
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
    assert peer.logged(error["data"]["request_id"])["outcome"] == "invalid_request"


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_path_that_is_not_there(peer: Peer) -> None:
    """It is answered in JSON too."""
    answer = peer.http.get(peer.url.replace("/mcp", "/admin"))
    assert (answer.status_code, answer.json()["error"]["data"]["code"]) == (404, "invalid_request")


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_privileged_tool_over_http(peer: Peer) -> None:
    """`MCP_LOCAL_SCOPES` is for the pipe: nobody over HTTP gets it."""
    assert peer.error("probe_privileged")["code"] == "unauthenticated"


def test_local_scopes_do_not_reach_http(start: Start) -> None:
    """A caller over HTTP is nobody's local user."""
    server = start(*SERVE_HTTP, settings={"MCP_LOCAL_SCOPES": "probe:use,probe:more"})
    for way in HTTP:
        peer = Peer(way, server)
        assert peer.error("probe_privileged")["code"] == "unauthenticated"
        peer.http.close()


@pytest.mark.parametrize("way", STDIO, ids=str)
def test_local_scopes_on_stdio(start: Start, way: Way) -> None:
    """Some of what is needed: forbidden, and the message says how to get the rest. All: served."""
    error = Peer(way, start(settings={"MCP_LOCAL_SCOPES": "probe:use"})).error("probe_privileged")
    assert error["code"] == "forbidden"
    assert "MCP_LOCAL_SCOPES=probe:more,probe:use" in error["message"]
    served = Peer(way, start(settings={"MCP_LOCAL_SCOPES": "probe:use, probe:more"})).call("probe_privileged")
    assert served["result"]["structuredContent"] == {"result": "done"}


@pytest.mark.parametrize("sessions", ["stateless", "stateful"])
def test_legacy_sessions(start: Start, sessions: str) -> None:
    """`stateful` gives legacy clients a session; stateless needs none."""
    server = start(*SERVE_HTTP, settings={"MCP_HTTP_SESSIONS": sessions})
    peer = Peer(HTTP[1], server)
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    answer = peer.post(peer.message("initialize", hello))
    assert ("mcp-session-id" in answer.headers) == (sessions == "stateful")
    peer.http.close()


def test_healthcheck_follows_the_server(start: Start) -> None:
    """It exits 0 while the server answers and 1 when it is gone."""
    server = start(*SERVE_HTTP)
    port = str(httpx2.URL(server.url).port)
    settings = {"MCP_TRANSPORT": "http", "MCP_PORT": port}
    assert run_command("healthcheck", settings=settings).returncode == 0
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
