"""Too much, too slow, or stuck: what one caller does must not hold up the others."""

import contextlib
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from .conftest import Start, StartPeer
from .harness import HTTP, MODERN, PACKAGE, PATIENCE, SERVE_HTTP, STDIO, Peer, Way, answer_of, extended, until
from .test_http import request
from .test_outbound import most_memory


def test_stalled_loop_is_logged_with_the_tool(start_peer: StartPeer, way: Way) -> None:
    """A tool that holds the event loop is named while it does, and again when it is over."""
    peer = start_peer(way)
    peer.call("probe_stalls", seconds=1)
    stalled = peer.server.wait_for("event_loop_stalled")
    assert (stalled["tool"], "probe_stalls" in stalled["at"]) == ("probe_stalls", True)
    assert peer.server.wait_for("event_loop_resumed")["seconds"] >= 0.25
    assert sum(event["event"] == "event_loop_stalled" for event in peer.server.log) == 1


@pytest.mark.parametrize("way", STDIO, ids=str)
def test_stalled_loop_with_more_to_read(start_peer: StartPeer, way: Way) -> None:
    """Input that waits is no sign that the client has gone, however long it waits."""
    peer = start_peer(way)
    stalls = peer.message("tools/call", {"name": "probe_stalls", "arguments": {"seconds": 2.5}})
    after = peer.message("tools/list")
    peer.server.send(stalls)
    peer.server.wait_for("event_loop_stalled")
    peer.server.send(after)
    assert {peer.server.receive()["id"], peer.server.receive()["id"]} == {stalls["id"], after["id"]}
    assert peer.server.finish() == (0, [])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("ending", ["signal", "input ends"])
def test_stalled_loop_does_not_hold_the_process(start_peer: StartPeer, way: Way, ending: str) -> None:
    """It ends when its time to stop is over, with the tool that holds it named, even if the loop never runs again."""
    if ending == "input ends" and way in HTTP:
        pytest.skip("HTTP has no input that ends")
    peer = start_peer(way, drain_timeout_seconds="0.2")
    message = peer.message("tools/call", {"name": "probe_stalls", "arguments": {"seconds": 600}})
    with ThreadPoolExecutor() as threads, contextlib.suppress(httpx2.RemoteProtocolError):
        call = threads.submit(peer.post, message) if way in HTTP else threads.submit(peer.server.send, message)
        peer.server.wait_for("event_loop_stalled")
        if ending == "signal":
            peer.server.process.terminate()
            time.sleep(0.1)  # one signal may be lost in the other
            peer.server.process.terminate()  # "I mean it"
        else:
            assert peer.server.process.stdin is not None
            peer.server.process.stdin.close()
        assert peer.server.process.wait(PATIENCE) == 1
        assert peer.server.wait_for("stop_overdue")["tool"] == "probe_stalls"
        call.result()


def test_abandoned_thread_is_counted_and_keeps_its_place(start_peer: StartPeer, way: Way) -> None:
    """A `def` tool that outlives its call is named; while it lasts, it is one of the calls that can run."""
    peer = start_peer(way, max_concurrent_calls="1")
    assert peer.error("probe_blocks")["code"] == "timeout"
    left = peer.server.wait_for("thread_abandoned")
    assert (left["function"], left["abandoned_threads"]) == ("probe_blocks", 1)
    assert peer.error("probe_waits_in_a_thread", seconds=0)["code"] == "overloaded"
    assert peer.call("probe_reached")["result"]["isError"] is False
    ended = peer.server.wait_for("abandoned_thread_ended")
    assert (ended["function"], ended["abandoned_threads"]) == ("probe_blocks", 0)
    assert peer.call("probe_waits_in_a_thread", seconds=0)["result"]["isError"] is False


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_client_that_leaves(peer: Peer, way: Way) -> None:
    """In 2026-07-28 that cancels its call; in the handshake revisions the call runs to its end."""
    message = peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": 0.8}})
    message["id"] = f"leaving-{way}"
    with pytest.raises(Exception, match="timed out"):
        peer.http.post(peer.url, json=message, headers=peer.headers(message), timeout=0.3)
    outcome = "cancelled" if way == HTTP[0] else "ok"
    assert peer.server.wait_for("request", rpc_id=message["id"])["outcome"] == outcome


def test_client_that_leaves_pipelined_requests(start_peer: StartPeer) -> None:
    """The first of them ends too, though another has come after it on its connection."""
    peer = start_peer(HTTP[0])
    message = peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": PATIENCE}})
    lines = [f"{name}: {value}" for name, value in peer.headers(message).items() if name.startswith("M")]
    address = httpx2.URL(peer.url)
    with socket.create_connection((address.host, address.port or 0)) as connection:
        connection.sendall(2 * request(json.dumps(message).encode(), *lines))
        peer.server.wait_for("waiting")
    ended = peer.server.wait_for("request")
    assert (ended["outcome"], ended["duration_ms"] < 5000) == ("cancelled", True)


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_progress_streams_ahead_of_the_answer(peer: Peer) -> None:
    """A call that has something to say before its end is answered with a stream of events."""
    message = peer.message("tools/call", {"name": "probe_progress", "arguments": {}, "_meta": {"progressToken": 7}})
    answer = peer.post(message)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.text.count('"progressToken":7') == 2
    assert answer_of(answer)["id"] == message["id"]
    for asked in ({}, {"_meta": {"progressToken": True}}):  # which is no token
        plain = peer.post(peer.message("tools/call", {"name": "probe_progress", "arguments": {}} | asked))
        assert plain.headers["content-type"] == "application/json"


@pytest.mark.parametrize("way", HTTP, ids=str)
def test_client_that_reads_late(start_peer: StartPeer, way: Way) -> None:
    """Its call waits for it, and holds no more than the connection takes; others are served, and nothing is lost."""
    peer = start_peer(way)
    arguments = {"name": "probe_floods", "arguments": {"megabytes": 30}, "_meta": {"progressToken": 7}}
    message = peer.message("tools/call", arguments)
    with peer.http.stream("POST", peer.url, json=message, headers=peer.headers(message)) as answer:
        before = most_memory(peer.server)
        for _ in range(20):
            assert "result" in peer.request("server/discover" if way.version == MODERN else "tools/list")
            time.sleep(0.05)
        assert not any(event["event"] == "flooded" for event in peer.server.log)
        assert most_memory(peer.server) - before < 10_000  # kB
        text = answer.read().decode()
    assert text.count('"progressToken":7') == 300
    assert f'"id":{message["id"]}' in text.splitlines()[-2]
    peer.server.wait_for("flooded")


IMPATIENT = f"""
from {PACKAGE}.serving import protocol

protocol._STALL_SECONDS = 2
"""


def test_connection_that_outlives_its_first_request(source: Path, tmp_path: Path, start: Start) -> None:
    """A client has its time for each request, and is not hurried by its calls, or between them."""
    hurried = IMPATIENT.replace("_STALL_SECONDS = 2", "_RECEIVE_SECONDS = 0.5")
    peer = Peer(HTTP[0], start(*SERVE_HTTP, source=extended(source, tmp_path, hurried)))
    message = peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": 1}})
    lines = [f"{name}: {value}" for name, value in peer.headers(message).items() if name.startswith("M")]
    address = httpx2.URL(peer.url)
    with socket.create_connection((address.host, address.port or 0), PATIENCE) as connection:
        for _ in range(2):
            connection.sendall(request(json.dumps(message).encode(), *lines))
            assert b'"result":"done"' in connection.recv(65536)
            time.sleep(1)
    peer.http.close()


def test_client_that_reads_slowly(source: Path, tmp_path: Path, start: Start) -> None:
    """It may pause as often as it likes."""
    peer = Peer(HTTP[0], start(*SERVE_HTTP, source=extended(source, tmp_path, IMPATIENT)))
    message = peer.message("tools/call", {"name": "probe_floods", "arguments": {"megabytes": 30}})
    message["params"]["_meta"]["progressToken"] = 7
    with peer.http.stream("POST", peer.url, json=message, headers=peer.headers(message)) as answer:
        parts = answer.iter_bytes(1 << 20)
        slow = []
        for _ in range(25):
            slow.append(next(parts))
            time.sleep(0.1)
        text = b"".join([*slow, *parts]).decode()
    assert text.count('"progressToken":7') == 300
    peer.http.close()


def test_client_that_never_reads(source: Path, tmp_path: Path, start: Start) -> None:
    """After a while it counts as gone, which cancels its call."""
    peer = Peer(HTTP[0], start(*SERVE_HTTP, source=extended(source, tmp_path, IMPATIENT)))
    message = peer.message("tools/call", {"name": "probe_floods", "arguments": {"megabytes": 30}})
    message["params"]["_meta"]["progressToken"] = 7
    with peer.http.stream("POST", peer.url, json=message, headers=peer.headers(message)):
        assert peer.server.wait_for("request", tool="probe_floods")["outcome"] == "cancelled"
    peer.http.close()


@pytest.mark.parametrize("way", [STDIO[0], HTTP[0]], ids=str)
def test_blocking_calls_leave_the_server_free(start_peer: StartPeer, way: Way) -> None:
    """While 45 `def` tools block their threads, everything else is answered."""
    peer = start_peer(way)
    call = {"name": "probe_waits_in_a_thread", "arguments": {"seconds": PATIENCE}}
    messages = [peer.message("tools/call", call) for _ in range(45)]
    with ThreadPoolExecutor(45) as pool:
        send = peer.post if way.transport == "http" else peer.server.send
        calls = [pool.submit(send, message) for message in messages]
        until(lambda: sum(event["event"] == "waiting" for event in peer.server.log) == 45)
        assert "result" in peer.request("server/discover")
        if way.transport == "http":
            assert peer.http.get(peer.url.replace("/mcp", "/livez")).status_code == 200
            assert not any(call.done() for call in calls)
        peer.server.process.kill()
