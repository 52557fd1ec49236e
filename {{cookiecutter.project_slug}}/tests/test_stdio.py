"""The pipe: every request that was read gets its answer, and what is no message is told so."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from .conftest import Start
from .harness import (
    ENVELOPE,
    MODERN,
    PACKAGE,
    PATIENCE,
    STDIO,
    Json,
    Peer,
    Way,
    environment,
    extended,
    run_lines,
    until,
)
from .test_http import SLOW
from .test_logs import calls_of


@pytest.fixture(params=STDIO, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    """Each era, over stdio only."""
    found: Way = request.param
    return found


def call(rpc_id: int, tool: str, **arguments: object) -> Json:
    """One `tools/call`."""
    params = {"name": tool, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": rpc_id, "method": "tools/call", "params": params}


def test_pipelined_requests_are_answered_at_the_end_of_input(source: Path, way: Way) -> None:
    """`printf … | server` gets all its answers, slow ones too."""
    messages = calls_of(way, *(call(n, "probe_waits", seconds=0.2) for n in range(1, 21)))
    code, out, _ = run_lines(messages, source=source)
    answers = {answer["id"]: answer for answer in map(json.loads, out)}
    assert code == 0
    assert set(range(1, 21)) <= set(answers)
    assert all(answers[n]["result"]["structuredContent"] == {"result": "done"} for n in range(1, 21))


def test_requests_are_bounded_at_once_and_not_in_all(peer: Peer) -> None:
    """There may be more of them than may be pending."""
    for _ in range(1100):
        assert "result" in peer.request("prompts/list")


def test_message_that_is_not_json(peer: Peer) -> None:
    """It is answered with a parse error, and the next good request is served."""
    peer.server.send(b"GET / HTTP/1.1")
    error = peer.server.receive()
    assert (error["id"], error["error"]["code"]) == (None, -32700)
    assert error["error"]["data"]["code"] == "invalid_request"
    assert peer.call("probe_reached")["result"]["isError"] is False


NO_MESSAGES = [
    ([], None),
    ([{"jsonrpc": "2.0", "id": 1, "method": "ping"}], None),
    ({"jsonrpc": "2.0", "id": 7}, 7),
    ({"jsonrpc": "1.0", "id": "a", "method": "ping"}, "a"),
    ({"jsonrpc": "2.0", "id": True, "method": "ping"}, None),
    ({"jsonrpc": "2.0", "id": {"a": 1}, "method": "ping"}, None),
    ("text", None),
    (7, None),
]


def test_json_that_is_no_message(peer: Peer) -> None:
    """A batch and other JSON are refused as an invalid request, under their id where there is one."""
    for message, rpc_id in NO_MESSAGES:
        peer.server.send(json.dumps(message).encode())
        answer = peer.server.receive()
        assert (answer["id"], answer["error"]["code"]) == (rpc_id, -32600), message
    assert peer.call("probe_reached")["result"]["isError"] is False


@pytest.mark.parametrize("rpc_id", [[1], {"a": 1}, None, True, 1.5, "unknown"])
def test_odd_cancellation_is_ignored(peer: Peer, rpc_id: object) -> None:
    """Whatever it names, it ends nothing."""
    peer.server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": rpc_id}})
    assert peer.call("probe_list")["result"]["isError"] is False


def test_call_that_outlasts_the_end_of_input_is_cut_and_answered(start: Start, way: Way) -> None:
    """It gets `shutting_down`, one line in the log, and the exit code says that a call was cut."""
    peer = Peer(way, start())
    messages = [
        peer.message("tools/call", {"name": name, "arguments": {"seconds": 30}})
        for name in ("probe_waits", "probe_waits_in_a_thread")
    ]
    for message in messages:
        peer.server.send(message)
    code, left = peer.server.finish()
    answers = {answer["id"]: answer["result"]["_meta"]["plinth/error"] for answer in map(json.loads, left)}
    assert (code, set(answers)) == (1, {message["id"] for message in messages})
    for error in answers.values():
        assert (error["code"], "not known whether it took effect" in error["message"]) == ("shutting_down", True)
        lines = [e for e in peer.server.log if e["event"] == "request" and e["request_id"] == error["request_id"]]
        assert [line["outcome"] for line in lines] == ["shutting_down"]
    assert peer.server.wait_for("stopped")["cut_calls"] == 2


def test_an_id_used_twice_is_answered_twice(source: Path) -> None:
    """Each request that was read gets its answer, whatever the client calls them."""
    calls = [call(1, "probe_waits", seconds=0.1), call(1, "probe_waits", seconds=0.4)]
    code, out, _ = run_lines(calls_of(Way("stdio", MODERN), *calls), source=source)
    assert (code, len(out)) == (0, 2)
    assert all(json.loads(line)["result"]["isError"] is False for line in out)


def test_line_beyond_the_limit(start: Start, way: Way) -> None:
    """It is refused without being kept, and the next good request is served."""
    peer = Peer(way, start(settings={"MCP_MAX_REQUEST_BYTES": "4096"}))
    message = peer.message("tools/list")
    peer.server.send(json.dumps(message).encode().ljust(4096))
    assert peer.server.receive()["id"] == message["id"]
    assert peer.server.process.stdin is not None
    peer.server.process.stdin.write(json.dumps(message).encode().ljust(4096))
    peer.server.process.stdin.flush()
    time.sleep(0.2)  # its end comes later
    peer.server.send(b"")
    assert peer.server.receive()["id"] == message["id"]
    for size in (5_000, 3_000_000):
        peer.server.send(b'{"jsonrpc": "2.0", "id": 1, "method": "' + b"x" * size + b'"}')
        answer = peer.server.receive()
        assert (answer["error"]["code"], "at most 4096 bytes" in answer["error"]["message"]) == (-32600, True)
    assert peer.call("probe_reached")["result"]["isError"] is False


def test_the_other_era_is_refused(peer: Peer, way: Way) -> None:
    """The first request of a pipe fixes its era; the refusal is complete like every other error."""
    assert peer.call("probe_reached")["result"]["isError"] is False
    other: Json = {"jsonrpc": "2.0", "id": 99, "method": "tools/list", "params": {"_meta": ENVELOPE}}
    if way.version == MODERN:
        other = {"jsonrpc": "2.0", "id": 99, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
    peer.server.send(other)
    error = peer.server.receive()["error"]
    assert error["code"] in (-32022, -32600)
    assert error["data"]["code"] == "invalid_request"


def test_too_many_calls_at_once(start: Start, way: Way) -> None:
    """What exceeds the limit is refused at once, and says when to come back; then there is room again."""
    peer = Peer(way, start(settings={"MCP_MAX_CONCURRENT_CALLS": "2"}))
    for n in range(100, 103):
        message = call(n, "probe_waits", seconds=0.3)
        peer.server.send(message | {"params": peer.message("", message["params"])["params"]})
    refused = peer.server.receive()
    error = refused["result"]["_meta"]["plinth/error"]
    assert (refused["id"], error["code"], error["retry_after_ms"]) == (102, "overloaded", 1000)
    assert {peer.server.receive()["id"], peer.server.receive()["id"]} == {100, 101}
    assert peer.call("probe_reached")["result"]["isError"] is False


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_after_the_answers(start: Start, way: Way, number: signal.Signals) -> None:
    """A call in flight is answered, then the process exits 0."""
    peer = Peer(way, start())
    message = peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": 0.2}})
    peer.server.send(message)
    peer.call("probe_reached")
    peer.server.process.send_signal(number)
    assert peer.server.receive()["id"] == message["id"]
    assert peer.server.process.wait(5) == 0
    assert peer.server.wait_for("stopped")["cut_calls"] == 0


def test_blocking_tool_does_not_hold_the_process(start: Start, way: Way) -> None:
    """A `def` tool that is still busy after its timeout is left behind."""
    peer = Peer(way, start())
    assert peer.error("probe_blocks")["code"] == "timeout"
    code, _ = peer.server.finish()
    assert code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("ending", ["end of input", "signal"])
def test_what_a_tool_leaves_behind_does_not_hold_the_process(start: Start, way: Way, ending: str) -> None:
    """Neither a task that does not let itself be cancelled nor a busy thread of the loop's own; others are cancelled."""
    peer = Peer(way, start())
    assert peer.call("probe_clings")["result"]["isError"] is False
    if ending == "signal":
        peer.server.process.terminate()
        assert peer.server.process.wait(5) == 0
    assert peer.server.finish()[0] == 0
    peer.server.wait_for("store_closed")
    peer.server.wait_for("task_tidied")


def test_second_signal_cuts_what_is_in_flight(start: Start, way: Way) -> None:
    """The calls are answered all the same, and the exit code says that they were cut."""
    peer = Peer(way, start())
    peer.server.send(peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": PATIENCE}}))
    peer.server.wait_for("waiting")
    peer.server.process.terminate()
    time.sleep(0.1)  # two signals at the same moment are one
    peer.server.process.terminate()
    assert peer.server.receive()["result"]["_meta"]["plinth/error"]["code"] == "shutting_down"
    assert peer.server.process.wait(5) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_output_that_cannot_be_written(source: Path, way: Way) -> None:
    """The server says so and ends, with the count of the answers that are lost."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", PACKAGE],
            input=b"\n".join(json.dumps(m).encode() for m in calls_of(way, call(1, "probe_reached"))) + b"\n",
            stdout=full,
            stderr=subprocess.PIPE,
            env=environment(source),
            timeout=PATIENCE,
            check=False,
        )
    log = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 1
    assert [event["event"] for event in log if event["level"] == "error"] == ["stdout_failed", "stopped"]
    assert log[-1]["lost_calls"] >= 1


@contextmanager
def unread(
    source: Path, stderr: int | IO[bytes] = subprocess.PIPE
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A server whose answers nobody reads yet, and its input, which is not buffered."""
    command, pipe = [sys.executable, "-m", PACKAGE], subprocess.PIPE
    with subprocess.Popen(
        command, bufsize=0, stdin=pipe, stdout=pipe, stderr=stderr, env=environment(source)
    ) as process:
        assert process.stdin is not None
        yield process, process.stdin


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_answers_that_nobody_reads(source: Path, way: Way) -> None:
    """They are lost at the stop, which the exit code and the log say."""
    with unread(source) as (process, stdin):
        assert process.stderr is not None
        for message in calls_of(way, *(call(n, "probe_large", size=400_000) for n in range(1, 3))):
            stdin.write(json.dumps(message).encode() + b"\n")
        answered = (line for line in iter(process.stderr.readline, b"") if b'"probe_large"' in line)
        assert [next(answered), next(answered)]
        process.send_signal(signal.SIGTERM)
        *_, last = process.stderr.read().splitlines()
    assert process.returncode == 1
    assert (json.loads(last)["event"], json.loads(last)["lost_calls"]) == ("stopped", 2)


def test_progress_that_nobody_reads_yet(source: Path, tmp_path: Path, way: Way) -> None:
    """The tool waits when as much is unread; nothing is lost."""
    log = tmp_path / "log"
    flood = call(1, "probe_floods", megabytes=5)
    flood["params"]["_meta"] = {"progressToken": 7} | (ENVELOPE if way.version == MODERN else {})
    with log.open("wb") as stderr, unread(source, stderr) as (process, stdin):
        for message in [*calls_of(way)[: way.version != MODERN], flood]:
            stdin.write(json.dumps(message).encode() + b"\n")
        until(lambda: b'"started"' in log.read_bytes())
        time.sleep(1)
        assert b"flooded" not in log.read_bytes()
        out, _ = process.communicate(timeout=PATIENCE)
    assert out.count(b"notifications/progress") == 50
    assert b"flooded" in log.read_bytes()
    assert process.returncode == 0


def test_client_that_closes_its_end(source: Path, way: Way) -> None:
    """What it is owed then is not wanted, which is no fault."""
    with unread(source) as (process, stdin):
        assert process.stdout is not None
        assert process.stderr is not None
        for message in calls_of(way, call(1, "probe_waits", seconds=0.2)):
            stdin.write(json.dumps(message).encode() + b"\n")
        assert any(b'"waiting"' in line for line in iter(process.stderr.readline, b""))
        process.stdout.close()
        rest = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert process.returncode == 0
    assert [event["event"] for event in rest if event["level"] != "info"] == []


def test_answers_larger_than_the_pipe(peer: Peer) -> None:
    """What the pipe does not take at once follows when the client reads."""
    for _ in range(5):
        answer = peer.call("probe_large", size=400_000)
        assert answer["result"]["structuredContent"] == {"result": "x" * 400_000}


def test_client_that_reads_late(source: Path, tmp_path: Path, way: Way) -> None:
    """Once it is owed a megabyte no more is read of what it asks, until it reads; then everything is answered."""
    log = tmp_path / "log"

    def answered(count: int) -> bool:
        end = time.monotonic() + (PATIENCE if count < 5 else 1)
        while log.read_text(encoding="utf-8").count('"probe_large"') < count and time.monotonic() < end:
            time.sleep(0.02)
        return time.monotonic() < end

    messages = calls_of(way, *(call(n, "probe_large", size=100_000) for n in range(1, 51)))
    lines, asked = iter([json.dumps(message).encode() + b"\n" for message in messages]), 0
    with log.open("wb") as stderr, unread(source, stderr) as (process, stdin):
        for line in lines:
            stdin.write(line)
            asked += b"probe_large" in line
            if not answered(asked):
                break
        out, _ = process.communicate(b"".join(lines), timeout=PATIENCE)
    assert 5 <= asked <= 8  # a text is in its answer twice
    answers = {answer.get("id"): answer for answer in map(json.loads, out.splitlines())}
    assert set(range(1, 51)) <= set(answers)
    assert process.returncode == 0


def test_input_from_a_file(source: Path, tmp_path: Path, way: Way) -> None:
    """`server <requests` is served as a pipe is, though a file cannot be polled."""
    messages = calls_of(way, *(call(n, "probe_waits", seconds=0.2) for n in range(1, 4)))
    path = tmp_path / "requests"
    path.write_text("".join(json.dumps(message) + "\n" for message in messages), encoding="utf-8")
    with path.open("rb") as file:
        command = [sys.executable, "-m", PACKAGE]
        done = subprocess.run(
            command, stdin=file, capture_output=True, env=environment(source), timeout=PATIENCE, check=True
        )
    assert {1, 2, 3} <= {json.loads(line)["id"] for line in done.stdout.splitlines()}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_signal_at_a_terminal(source: Path) -> None:
    """Nobody types, and the read that waits for it holds nothing up."""
    import pty

    ours, theirs = pty.openpty()
    with open(theirs, "rb") as terminal, open(ours, "rb"):
        command, pipe = [sys.executable, "-m", PACKAGE], subprocess.PIPE
        with subprocess.Popen(command, stdin=terminal, stdout=pipe, stderr=pipe, env=environment(source)) as server:
            assert server.stderr is not None
            assert any(b'"started"' in line for line in iter(server.stderr.readline, b""))
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE) == 0
            assert b"stop_overdue" not in server.stderr.read()


def opens_for(seconds: str, source: Path, folder: Path) -> Path:
    """A copy of the source with a dependency that takes its time to open."""
    return extended(source, folder, SLOW.replace("1.5", seconds))


def test_requests_before_the_server_has_started(source: Path, tmp_path: Path, way: Way) -> None:
    """They are answered, though their client has written its last by then."""
    messages = calls_of(way, call(1, "probe_reached"))
    code, out, _ = run_lines(messages, source=opens_for("1", source, tmp_path))
    assert (code, json.loads(out[-1])["result"]["isError"]) == (0, False)


def test_client_that_goes_while_the_server_starts(source: Path, tmp_path: Path, start: Start) -> None:
    """What is still being opened then is for nobody, and is not waited for."""
    server = start(source=opens_for("600", source, tmp_path))
    assert server.finish() == (0, [])
    assert server.wait_for("stopped")["cut_calls"] == 0


def test_progress_comes_before_the_answer(peer: Peer) -> None:
    """Progress is reported under the caller's token."""
    params = {"name": "probe_progress", "arguments": {}, "_meta": {"progressToken": "p1"}}
    peer.server.send(peer.message("tools/call", params))
    seen = [peer.server.receive() for _ in range(3)]
    assert [(m["params"]["progressToken"], m["params"]["progress"]) for m in seen[:2]] == [("p1", 1), ("p1", 2)]
    assert seen[2]["result"]["content"] == []
