"""Stopping over HTTP: what was accepted is answered, in both eras, and the exit code tells."""

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from .conftest import StartPeer
from .harness import ERROR, HTTP, PATIENCE, Peer, Way, rest_of, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture(params=HTTP, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Each era, over HTTP only."""
    found: Way = request.param
    return found


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """For calls that are in flight while the test does something else."""
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.mark.parametrize(("sessions", "number"), [("stateless", signal.SIGTERM), ("stateful", signal.SIGINT)])
def test_calls_in_flight_are_answered(
    start_peer: StartPeer, way: Way, threads: ThreadPoolExecutor, sessions: str, number: signal.Signals
) -> None:
    """Eight calls get their results, an idle stream does not hold the process, and it exits 0."""
    peer = start_peer(way, http_sessions=sessions)
    headers = session_of(peer)
    with httpx2.Client(trust_env=False) as idle:
        if way.version != "2026-07-28":
            asked = {"Accept": "text/event-stream", "MCP-Protocol-Version": way.version} | headers
            stream = idle.send(idle.build_request("GET", peer.url, headers=asked), stream=True)
            assert stream.status_code == 200
        params = {"name": "probe_waits", "arguments": {"seconds": 0.5}}
        messages = [peer.message("tools/call", params) for _ in range(8)]
        calls = [threads.submit(peer.post, message, headers) for message in messages]
        until(lambda: sum(event["event"] == "waiting" for event in peer.server.log) == 8)
        peer.server.process.send_signal(number)
        for call in calls:
            assert call.result().status_code == 200
            assert "done" in call.result().text
        assert peer.server.process.wait(5) == 0
    assert peer.server.wait_for("stopped")["cut_calls"] == 0


def session_of(peer: Peer) -> dict[str, str]:
    """The header of a legacy session, where the server gives one."""
    if peer.way.version == "2026-07-28":
        return {}
    hello = {"protocolVersion": peer.way.version, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    session = peer.post(peer.message("initialize", hello)).headers.get("mcp-session-id")
    return {"Mcp-Session-Id": session} if session else {}


def test_call_that_outlasts_the_drain_is_cut_and_answered(
    start_peer: StartPeer, way: Way, threads: ThreadPoolExecutor
) -> None:
    """It gets `shutting_down`, and the exit code says that a call was cut."""
    peer = start_peer(way, drain_timeout_seconds="0.2")
    call = threads.submit(peer.error, "probe_waits", seconds=30)
    peer.server.wait_for("waiting")
    peer.server.process.terminate()
    error = call.result()
    assert (error["code"], "not known whether it took effect" in error["message"]) == ("shutting_down", True)
    assert peer.server.process.wait(5) == 1
    assert peer.logged(error["request_id"])["outcome"] == "shutting_down"
    assert peer.server.wait_for("stopped")["cut_calls"] == 1


def test_request_that_is_half_received(start_peer: StartPeer, way: Way) -> None:
    """It is waited for like a call; if the rest does not come in time it is refused, and is not lost in silence."""
    peer = start_peer(way, drain_timeout_seconds="0.5")
    address = httpx2.URL(peer.url)
    head = f"POST /mcp HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\nAccept: */*\r\n".encode()
    with contextlib.ExitStack() as stack:
        halves = [head, head + b"Content-Length: 100\r\n\r\n{"]
        connections = [socket.create_connection((address.host, address.port or 0), PATIENCE) for _ in halves]
        for connection, half in zip(connections, halves, strict=True):
            stack.enter_context(connection).sendall(half)
        assert peer.http.get(peer.url.replace("/mcp", "/livez")).status_code == 200
        peer.server.process.terminate()
        for connection in connections:
            assert rest_of(connection).startswith(b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json")
    assert peer.server.process.wait(5) == 0


def test_readiness_turns_off_while_the_server_serves_on(start_peer: StartPeer, way: Way) -> None:
    """During the drain delay a load balancer sees 503, and whoever still comes is served."""
    peer = start_peer(way, drain_delay_seconds="1")
    ready, alive = peer.url.replace("/mcp", "/readyz"), peer.url.replace("/mcp", "/livez")
    assert peer.http.get(ready).status_code == 200
    begun = time.monotonic()
    peer.server.process.terminate()
    peer.server.wait_for("draining")
    answer = httpx2.get(ready, trust_env=False)  # on a connection of its own: no new one is refused yet
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
    assert peer.http.get(alive).status_code == 200
    assert ERROR not in peer.call("probe_list")["result"].get("_meta", {})
    assert peer.server.process.wait(5) == 0
    assert time.monotonic() - begun >= 1
    with pytest.raises(httpx2.ConnectError):
        peer.http.get(ready)


@pytest.mark.parametrize("way", HTTP[1:], ids=str)
def test_stream_ends_with_the_server(start_peer: StartPeer, way: Way) -> None:
    """The one for what the server sends on its own is brought to its end, and not broken off."""
    peer = start_peer(way)
    headers = peer.headers(b"") | {"Accept": "text/event-stream"}
    with peer.http.stream("GET", peer.url, headers=headers) as stream:
        peer.server.process.terminate()
        assert stream.read() == b": open\n\n"
    assert peer.server.process.wait(5) == 0


def test_client_that_never_reads(start_peer: StartPeer, way: Way) -> None:
    """Its answer is lost, which the exit code and the log say, and it does not hold the process."""
    peer = start_peer(way, drain_timeout_seconds="0.2")
    arguments = {"name": "probe_floods", "arguments": {"megabytes": 30}, "_meta": {"progressToken": 7}}
    message = peer.message("tools/call", arguments)
    with peer.http.stream("POST", peer.url, json=message, headers=peer.headers(message)):
        time.sleep(0.2)
        peer.server.process.terminate()
        assert peer.server.process.wait(10) == 1
    stopped = peer.server.wait_for("stopped")
    assert (stopped["cut_calls"], stopped["lost_calls"]) == (1, 1)


def test_second_signal_ends_it_at_once(start_peer: StartPeer, way: Way, threads: ThreadPoolExecutor) -> None:
    """Whoever is in a hurry does not wait for the drain; the exit code says that a call was cut."""
    peer = start_peer(way)
    call = threads.submit(peer.post, peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": 30}}))
    peer.server.wait_for("waiting")
    peer.server.process.terminate()
    peer.server.wait_for("draining")
    peer.server.process.terminate()
    assert peer.server.process.wait(5) == 1
    assert call.exception() is not None or "done" not in call.result().text
