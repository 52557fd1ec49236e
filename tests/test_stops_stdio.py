"""Stopping on a pipe: whatever is in flight, and however it is told, every request that was read is answered."""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

import pytest

from bootstrap import environment
from installed import Installed
from raw import HELLO, INITIALIZED, LEGACY, MODERN, PATIENCE, Json, Server, message
from stops import (
    CUT,
    LONG,
    NOISE,
    SABOTAGE,
    as_process_1,
    code_at_end,
    install_probes,
    outcome,
    sabotaged,
    side_by_side,
    summary,
)

pytestmark = [
    pytest.mark.install,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]

STOP_SECONDS = 2  # clients kill a server that takes longer
AT_ONCE_SECONDS = 1
END, TWICE = "end of input", "SIGTERM twice"
STOPS = (END, "SIGTERM", "SIGINT", TWICE)


class Load(NamedTuple):
    """What is in flight: so many calls of a tool for so long, and how they end; None if they get no answer."""

    tool: str = ""
    seconds: float = 0
    calls: int = 1
    ends: str | None = "ok"


LOADS = {
    "idle": Load(calls=0),
    "async call": Load("wait", 0.3),
    "blocking call": Load("block", 0.3),
    "blocked loop": Load("hold", 0.3),
    "20 pipelined requests": Load("wait", 0.3, calls=20),
    "async call that outlasts the drain": Load("wait", LONG, ends=CUT),
    "blocking call that outlasts the drain": Load("block", LONG, ends=CUT),
    "blocked loop that outlasts the stop": Load("hold", LONG, ends=None),
    "listen stream": Load(),
}


class Cell(NamedTuple):
    """One cell of the table."""

    era: str
    load: str
    stop: str


CELLS = [
    Cell(*cell)
    for cell in itertools.product((MODERN, LEGACY), LOADS, STOPS)
    if cell[:2] != (LEGACY, "listen stream")  # only the modern era has them
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project with the probes dropped in, installed."""
    return install_probes(tmp_path_factory.mktemp("stops"))


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest, installed: Installed) -> Iterator[Callable[[Cell], None]]:
    """The chosen cells, running."""
    with side_by_side(request, lambda cell: stop_under_load(installed, cell)) as running:
        yield running


def requests_of(era: str, load: str) -> list[Json]:
    """The requests of a load, numbered from 1."""
    if load == "listen stream":
        return [message(era, 1, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})]
    tool, seconds, calls, _ = LOADS[load]
    params = {"name": tool, "arguments": {"seconds": seconds}}
    return [message(era, rpc_id, "tools/call", params) for rpc_id in range(1, calls + 1)]


def opening(era: str) -> list[Json]:
    """What a client sends first."""
    return [message(era, 0, "initialize", HELLO), INITIALIZED] if era == LEGACY else []


def apply(stop: str, server: Server) -> float:
    """Stop the server; returns the moment from which its time counts."""
    since = monotonic()
    assert server.process.stdin is not None
    if stop == END:
        server.process.stdin.close()
    else:
        server.process.send_signal(signal.SIGINT if stop == "SIGINT" else signal.SIGTERM)
    if stop == TWICE:
        sleep(0.1)  # a pipe shows nothing of the first signal, and one that comes too soon is none to the system
        server.process.send_signal(signal.SIGTERM)
    return since


def stop_under_load(installed: Installed, cell: Cell, **settings: str) -> None:
    """Stop a server and check its answers, its log, its exit code and its time."""
    load, requests = LOADS[cell.load], requests_of(cell.era, cell.load)
    with Server([installed.command], settings) as server:
        server.send(*opening(cell.era), *requests)
        if cell.load == "listen stream":
            assert json.loads(server.receive())["method"] == "notifications/subscriptions/acknowledged"
        elif requests:
            server.wait_for("begun")
        else:
            server.wait_for("started")
        since = apply(cell.stop, server)
        code = code_at_end(server, since, AT_ONCE_SECONDS if cell.stop == TWICE else STOP_SECONDS)
        answers = answers_of(server)
        if load.ends is None:
            # Nothing of ours can run but the watchdog.
            assert (code, answers) == (1, {})
            overdue = server.events()[-1]
            assert (overdue["event"], overdue["tool"]) == ("stop_overdue", "hold")
            return
        assert set(answers) == {request["id"] for request in requests}
        if cell.stop == TWICE and cell.load != "listen stream":
            assert set(answers.values()) <= {load.ends, CUT}
        else:
            assert set(answers.values()) <= {load.ends}
        cut = Counter(answers.values())[CUT]
        stopped = summary(server)
        assert (stopped["cut_calls"], stopped["lost_calls"]) == (cut, 0)
        assert code == (1 if cut else 0)


def answers_of(server: Server) -> dict[Any, str]:
    """How each request ended, without the handshake; the server has ended."""
    lines = list(iter(server.lines.get_nowait, None))
    assert all(line.endswith(b"\n") for line in lines)
    messages = [json.loads(line) for line in lines]
    assert all(found["jsonrpc"] == "2.0" for found in messages)
    answers = [found for found in messages if "method" not in found and found["id"] != 0]
    assert max(Counter(found["id"] for found in answers).values(), default=1) == 1
    return {found["id"]: outcome(found) for found in answers}


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_stop(cells: Callable[[Cell], None], cell: Cell) -> None:
    """Every request that was read has one answer, and the process is gone in time with the code that fits."""
    cells(cell)


@pytest.mark.parametrize("what", SABOTAGE)
def test_server_without_its_drain_is_found_out(installed: Installed, tmp_path: Path, what: str) -> None:
    """The cells above that need it fail."""
    settings = sabotaged(installed, tmp_path, what)
    stop_under_load(installed, Cell(MODERN, "idle", END), **settings)  # nothing else is wrong with it
    load = "async call that outlasts the drain" if what == "calls are not cut" else "async call"
    for era, stop in ((MODERN, END), (LEGACY, "SIGTERM")):
        with pytest.raises(AssertionError):
            stop_under_load(installed, Cell(era, load, stop), **settings)


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_everything_is_there_before_it_starts(installed: Installed, era: str) -> None:
    """Requests that were written together with the end of input are all answered."""
    requests = requests_of(era, "20 pipelined requests")
    with Server([installed.command]) as server:
        server.send(*opening(era), *requests)
        apply(END, server)
        assert server.wait() == 0
        assert set(answers_of(server).values()) == {"ok"}
        assert summary(server)["cut_calls"] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_until_it_is_gone(installed: Installed, number: signal.Signals) -> None:
    """However often and however late it is signalled, it ends in order, with the code of what it did."""
    with Server([installed.command]) as server:
        server.send(*requests_of(MODERN, "async call that outlasts the drain"))
        server.wait_for("begun")
        since = monotonic()
        while server.process.poll() is None:
            server.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(0.002)
        assert code_at_end(server, since, STOP_SECONDS) == 1
        summary(server)


@pytest.mark.parametrize(
    ("stop", "size"), [(END, 200_000), ("SIGTERM", 5_000_000)], ids=["written in part", "beyond what is kept"]
)
def test_answer_that_nobody_reads_is_counted_as_lost(installed: Installed, stop: str, size: int) -> None:
    """The process does not wait for its reader beyond its time, and tells by its code what became of the answer."""
    call = message(MODERN, 1, "tools/call", {"name": "fill", "arguments": {"size": size}})
    variables = environment() | {"MCP_MAX_RESULT_BYTES": "9000000"}
    pipe = subprocess.PIPE
    with subprocess.Popen([installed.command], stdin=pipe, stdout=pipe, stderr=pipe, env=variables) as process:
        assert process.stdin
        assert process.stderr
        try:
            process.stdin.write(json.dumps(call).encode() + b"\n")
            process.stdin.flush()
            events = (json.loads(line) for line in process.stderr)
            next(event for event in events if event["event"] == "request")
            process.stdin.close() if stop == END else process.terminate()
            code = process.wait(STOP_SECONDS + NOISE)
            *_, last = events
        finally:
            process.kill()
    # The wait for the reader takes nearly all the time there is: a busy machine may not get to the last line.
    assert (code, last.get("lost_calls", last["event"])) in [(1, 1), (1, "stop_overdue")]


def test_terminal_that_hangs_up(installed: Installed) -> None:
    """A server that somebody types to ends in order when the terminal goes."""
    ours, theirs = os.openpty()
    with Server([installed.command], stdin=theirs) as server:
        os.close(theirs)
        (request,) = requests_of(MODERN, "blocking call that outlasts the drain")
        os.write(ours, json.dumps(request).encode() + b"\n")
        server.wait_for("begun")
        since = monotonic()
        os.close(ours)
        assert code_at_end(server, since, STOP_SECONDS) == 1
        assert answers_of(server) == {1: CUT}
        summary(server)


@pytest.mark.parametrize("stop", [END, "SIGTERM"])
def test_stop_while_a_dependency_opens(installed: Installed, stop: str) -> None:
    """Nothing was asked yet, so nothing is owed: it ends with 0, and does not wait."""
    with Server([installed.command], {"PROBE_OPENS": str(LONG)}) as server:
        server.wait_for("opening")
        assert code_at_end(server, apply(stop, server), STOP_SECONDS) == 0


@pytest.mark.parametrize("stop", [END, "SIGTERM"])
@pytest.mark.parametrize("settings", [{"PROBE_CLOSES": str(LONG)}, {"PROBE_FAILS": "1"}], ids=["hangs", "fails"])
def test_cleanup_that_does_not_succeed(installed: Installed, stop: str, settings: dict[str, str]) -> None:
    """The process ends in time all the same, also with a thread that is still busy, after the answer is out."""
    with Server([installed.command], settings) as server:
        server.send(*requests_of(MODERN, "blocking call that outlasts the drain"))
        server.wait_for("begun")
        assert code_at_end(server, apply(stop, server), STOP_SECONDS) == 1
        assert answers_of(server) == {1: CUT}
        server.wait_for("closing")


@pytest.mark.parametrize(
    ("load", "stop"),
    [
        ("idle", END),
        ("idle", "SIGTERM"),
        ("async call", "SIGINT"),
        ("blocking call that outlasts the drain", END),
        ("blocking call that outlasts the drain", "SIGTERM"),
    ],
)
def test_stop_as_process_1(installed: Installed, load: str, stop: str) -> None:
    """The first process of a container, to which no signal does anything by itself, stops as any other."""
    with as_process_1([installed.command], {}, "started") as (server, pid):
        server.send(*requests_of(MODERN, load))
        if load != "idle":
            server.wait_for("begun")
        since = monotonic()
        if stop == END:
            apply(stop, server)
        else:
            os.kill(pid, getattr(signal, stop))
        code = code_at_end(server, since, STOP_SECONDS)
        assert answers_of(server) == ({} if load == "idle" else {1: LOADS[load].ends})
        assert code == summary(server)["cut_calls"] == (1 if LOADS[load].ends == CUT else 0)
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_the_imports_as_process_1(installed: Installed, number: signal.Signals) -> None:
    """It is not lost, although nothing is served yet."""
    with as_process_1([installed.command], {"PROBE_IMPORTS": str(LONG)}, "stderr_noise") as (server, pid):
        since = monotonic()
        os.kill(pid, number)
        code_at_end(server, since, STOP_SECONDS)
        assert [event["event"] for event in server.events()] == ["stderr_noise"]


PARENT = """
import subprocess, sys
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
server.stdin.write(sys.argv[1].encode())
server.stdin.flush()
while b"begun" not in server.stderr.readline():
    pass
print(server.pid, flush=True)
server.wait()
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the end of somebody else's process is seen on Linux only")
@pytest.mark.parametrize("load", ["blocking call that outlasts the drain", "blocked loop that outlasts the stop"])
def test_server_does_not_outlive_its_client(installed: Installed, load: str) -> None:
    """When the process that started it is killed, it is gone too, whatever is in flight."""
    lines = "".join(json.dumps(each) + "\n" for each in requests_of(MODERN, load))
    command = [sys.executable, "-c", PARENT, lines, installed.command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as parent:
        assert parent.stdout
        try:
            assert select.select([parent.stdout], [], [], PATIENCE)[0], "nothing is in flight"
            server = os.pidfd_open(int(parent.stdout.readline()))
        finally:
            parent.kill()
    try:
        gone = select.select([server], [], [], STOP_SECONDS + NOISE)[0]
        if not gone:
            signal.pidfd_send_signal(server, signal.SIGKILL)
    finally:
        os.close(server)
    assert gone


def test_blocking_calls_do_not_hold_up_others(installed: Installed) -> None:
    """While 45 blocking calls run, `server/discover` is answered as fast as before, give or take 100 ms."""
    params = {"name": "block", "arguments": {"seconds": 1.0}}
    calls = [message(MODERN, rpc_id, "tools/call", params) for rpc_id in range(1, 46)]
    for _ in range(5):  # another process may take both cores for as long, but hardly each time
        with Server([installed.command]) as server:
            before = slowest_discover(server)
            server.send(*calls)
            during = slowest_discover(server)
            done = [event for event in server.events() if event["event"] == "request" and event["tool"] == "block"]
            server.wait_for("begun", len(calls))
        if during < before + 0.1 and not done:
            return
    raise AssertionError((before, during, len(done)))


def slowest_discover(server: Server) -> float:
    """Seconds of the slowest of 20 requests, one after the other."""
    slowest = 0.0
    for _ in range(20):
        asked = monotonic()
        server.send(message(MODERN, "discover", "server/discover"))
        while json.loads(server.receive())["id"] != "discover":
            pass
        slowest = max(slowest, monotonic() - asked)
    return slowest
