"""stderr is JSON from the first moment to the last, stdout is protocol, and neither shows a secret."""

import json
import os
import shutil
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from .conftest import Start
from .harness import (
    ENVELOPE,
    LEGACY,
    MODERN,
    PACKAGE,
    PATIENCE,
    SERVE_HTTP,
    STDIO,
    Json,
    Peer,
    Way,
    environment,
    run_command,
    run_lines,
)

NOISY = '''"""Prints at import, at exit, and in every way there is between."""

import atexit
import ctypes
import logging
import os
import subprocess
import sys
import warnings

from PACKAGE.tooling import tool

print("noise at import")
sys.stdout.write("noise without an end, ")
atexit.register(print, "noise at exit")


@tool()
def noisy() -> str:
    """Make noise."""
    print("noise from print")
    os.write(1, b"noise to descriptor 1\\n")
    subprocess.run(["echo", "noise from a child"], check=True)
    subprocess.run(["sh", "-c", "echo noise from a child on stderr >&2"], check=True)
    ctypes.CDLL(None).puts(b"noise from C")
    sys.__stdout__.write("noise past sys.stdout\\n")
    warnings.warn("noise as a warning", stacklevel=1)
    logging.getLogger("library").warning("noise in a library's log")
    print("noise left in the buffer", end="")
    return "quiet"
'''


@pytest.fixture(scope="session")
def noisy(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree with one more tool dropped in."""
    copy = tmp_path_factory.mktemp("noisy")
    shutil.copytree(source, copy, dirs_exist_ok=True)
    (copy / PACKAGE / "tools" / "noisy.py").write_text(NOISY.replace("PACKAGE", PACKAGE), encoding="utf-8")
    return copy


def calls_of(way: Way, *messages: Json) -> list[Json | bytes]:
    """What a client of this era writes to a pipe."""
    if way.version == MODERN:
        return [m | {"params": m.get("params", {}) | {"_meta": ENVELOPE}} for m in messages]
    hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
    return [{"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": hello}, *messages]


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("way", STDIO, ids=str)
def test_only_protocol_on_stdout(noisy: Path, way: Way, unbuffered: str) -> None:
    """Whatever prints, stdout to the end of file is protocol; each stray line becomes an event of its own."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "noisy", "arguments": {}}}
    settings = {"PYTHONUNBUFFERED": unbuffered, "PYTHONWARNINGS": "always"}
    code, out, err = run_lines(calls_of(way, call), source=noisy, settings=settings)
    assert code == 0
    answers = [json.loads(line) for line in out]
    assert {answer["jsonrpc"] for answer in answers} == {"2.0"}
    assert answers[-1]["result"]["structuredContent"] == {"result": "quiet"}
    events = [json.loads(line) for line in err]
    noise = " | ".join(event["line"] for event in events if event["event"] == "stdout_noise")
    for each in ("at import", "without an end", "from print", "to descriptor 1", "from a child", "from C"):
        assert f"noise {each}" in noise
    for each in ("past sys.stdout", "left in the buffer", "at exit"):
        assert f"noise {each}" in noise
    assert [e["line"] for e in events if e["event"] == "stderr_noise"] == ["noise from a child on stderr"]
    assert any("noise as a warning" in e["event"] for e in events)
    assert any(e["event"] == "noise in a library's log" and e["logger"] == "library" for e in events)


def test_every_line_has_time_level_and_event(peer: Peer) -> None:
    """Times are ISO 8601 in UTC."""
    peer.call("probe_list")
    for line in peer.server.log:
        assert list(line)[:3] == ["timestamp", "level", "event"]
        assert datetime.fromisoformat(line["timestamp"]).utcoffset() is not None


SECRETS = {
    "MCP_REQUEST_STATE_KEYS": "canary-of-a-setting-0123456789abcdef",
    "UPSTREAM_API_KEY": "canary-of-the-environment",
}
CANARY = "canary-of-an-argument"


@pytest.mark.parametrize("version", [MODERN, LEGACY])
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_no_secret_is_logged_or_answered(start: Start, transport: str, version: str) -> None:
    """Planted in the environment, in arguments, in an exception's text, cause and locals, in a URL: found nowhere."""
    arguments = SERVE_HTTP if transport == "http" else ()
    server = start(*arguments, settings=SECRETS | {"MCP_LOG_LEVEL": "DEBUG"})
    peer = Peer(Way("http" if transport == "http" else "stdio", version), server)
    answers = [
        peer.call("probe_crashes", secret=CANARY),
        peer.call("probe_crashes", secret=SECRETS["UPSTREAM_API_KEY"]),
        peer.call("probe_arguments", count=CANARY, day=CANARY, **{f"{CANARY}!": 1}),
        peer.call("probe_list", **{f"{CANARY} ": CANARY}),
        peer.request("resources/read", {"uri": f"https://{CANARY}:{CANARY}@example.com/?token={CANARY}"}),
        peer.request("prompts/get", {"name": CANARY, "arguments": {CANARY: CANARY}}),
        peer.request(CANARY, {"x": CANARY}),
        peer.request("tools/call", {"name": CANARY, "arguments": {}}),
    ]
    peer.call("probe_careless", secret=CANARY)
    peer.call("probe_logs", secret=SECRETS["MCP_REQUEST_STATE_KEYS"])
    peer.call("probe_background", secret=CANARY)
    peer.call("probe_sdk_error", secret=CANARY)
    if transport == "http":
        for body in (b"{" + CANARY.encode(), b'["' + CANARY.encode() + b'"]'):
            answers.append({"text": peer.post(body, {"Authorization": f"Bearer {CANARY}"}).text})
        answers.append({"text": peer.post(b"{}", {"Host": CANARY}).text})
        answers.append({"text": peer.post(b"{}", {"Origin": f"https://{CANARY}"}).text})
        peer.http.close()
    else:
        server.send(CANARY.encode())
        server.send(b'["' + CANARY.encode() + b'"]')
        answers += [server.receive(), server.receive()]
    server.wait_for("request", tool="probe_sdk_error")
    server.process.terminate()
    server.finish()
    assert server.wait_for("asyncio")["exception"]["type"] == "ValueError"
    crash = server.wait_for("crash")["exception"]
    assert crash["type"] == "ValueError"
    assert any("probe_crashes" in place for place in crash["at"])
    for secret in (CANARY, *SECRETS.values()):
        assert secret not in json.dumps(answers)
        assert secret.encode() not in b"".join(server.stderr)


def test_a_tools_own_events_carry_the_request(peer: Peer) -> None:
    """What a tool logs can be found by the request id of its call."""
    answer = peer.call("probe_careless", secret="nothing-secret")
    line = peer.server.wait_for("request", rpc_id=answer["id"], tool="probe_careless")
    assert peer.server.wait_for("careless", request_id=line["request_id"], level="warning")["nested"] == {
        "api_key": "[redacted]",
        "list": [{"password": "[redacted]"}],
    }


def test_text_of_others_cannot_disguise_a_line(peer: Peer) -> None:
    """What nobody sees, or what ends a line for some reader, is escaped, in the caller's id too; long texts are cut."""
    deceiving = "\x7f\x85\u2028\u2029\u202e\u2066\u200b\ufe0f\U000e0041"
    said, other = f"say {deceiving}", "y" * 100_000
    for text in (said, other):
        message = peer.message("tools/call", {"name": "probe_says", "arguments": {"text": text}})
        message["id"] = f"{peer.way} {text[:40]}"
        if peer.way.transport == "http":
            peer.post(message)
        else:
            peer.server.send(message)
            assert peer.server.receive()["id"] == message["id"]
        seen = peer.server.wait_for("request", rpc_id=message["id"], tool="probe_says")
        told = next(event for event in peer.server.log if event.get("request_id") == seen["request_id"])
        shown = said if text == said else "y" * 8192 + "[cut]"
        assert (told["event"], told["note"]) == (shown, shown)
        assert len(str(told)) < 50_000
    raw = b"".join(peer.server.stderr).decode()
    assert not set(deceiving) & set(raw)


def test_what_cannot_be_logged_breaks_nothing(peer: Peer) -> None:
    """The call goes on, and the log says that something is missing."""
    assert peer.call("probe_logs", secret="nothing-secret")["result"]["isError"] is False
    assert peer.server.wait_for("unloggable", logger="careless")


@pytest.mark.parametrize("way", STDIO, ids=str)
def test_cancelled_call_is_logged_and_not_answered(start: Start, way: Way) -> None:
    """`notifications/cancelled` stops the tool; the log says so, the wire is silent."""
    peer = Peer(way, start())
    message = peer.message("tools/call", {"name": "probe_waits", "arguments": {"seconds": PATIENCE}})
    peer.server.send(message)
    peer.server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": message["id"]}})
    assert peer.server.wait_for("request", rpc_id=message["id"])["outcome"] == "cancelled"
    insisting = peer.message("tools/call", {"name": "probe_insists", "arguments": {}})
    peer.server.send(insisting)
    peer.server.wait_for("insists")
    peer.server.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": insisting["id"]}})
    peer.server.wait_for("insisted")
    assert peer.call("probe_reached")["result"]["isError"] is False
    code, left = peer.server.finish()
    assert (code, left) == (0, [])


def test_a_crash_at_start_is_one_json_line(tmp_path: Path, source: Path) -> None:
    """A broken dependency is reported by name, in JSON, even before the log is configured."""
    copy = tmp_path / "source"
    shutil.copytree(source, copy)
    (copy / "structlog.py").write_text("import no_such_dependency\n", encoding="utf-8")
    done = run_command("serve", source=copy)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert line["event"] == "crash"
    assert line["exception"]["text"] == "No module named 'no_such_dependency'"


def test_console_format_is_for_people(start: Start) -> None:
    """`MCP_LOG_FORMAT=console` writes lines that are no JSON."""
    server = start(settings={"MCP_LOG_FORMAT": "console"})
    assert server.finish() == (0, [])
    assert b"started" in server.stderr[0]
    assert not server.stderr[0].startswith(b"{")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot tell whether a pipe has room")
@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_a_log_that_nobody_reads_stops_nothing(source: Path, reader: str) -> None:
    """A client that closes stderr, or never reads it, is served all the same; what it finds there later is whole."""
    read, write = os.pipe()
    if reader == "gone":
        os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", PACKAGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=write,
        env=environment(source),
    )
    os.close(write)
    assert process.stdin is not None
    assert process.stdout is not None
    to_server, from_server = process.stdin, process.stdout

    def call(count: int, tool: str) -> None:
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}}
        (message,) = calls_of(Way("stdio", MODERN), asked)
        to_server.write((json.dumps(message).encode() + b"\n") * count)
        to_server.flush()
        for _ in range(count):
            assert json.loads(from_server.readline())["result"]["isError"] is False

    lines: list[bytes] = []

    def read_to_the_end() -> None:
        with open(read, "rb") as stream:
            lines.extend(stream)

    woken = threading.Thread(target=read_to_the_end)
    call(250, "probe_prints")  # 8,000 characters each: the pipe is full in the middle of a line
    if reader == "asleep":
        woken.start()
        call(20, "probe_list")
    to_server.close()
    assert process.wait(PATIENCE) == 0
    from_server.close()
    if reader == "asleep":
        woken.join(PATIENCE)
        events = [json.loads(line) for line in lines]
        assert any(event["event"] == "log_lines_dropped" and event["count"] > 0 for event in events)
