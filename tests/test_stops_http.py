"""Stopping over HTTP: whatever is in flight, every call that was accepted has one whole answer.

A server is told to stop while clients of both eras are connected to it, without sessions and with them.
"""

import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from installed import Installed
from raw import (
    HELLO,
    INITIALIZED,
    LEGACY,
    MODERN,
    PATIENCE,
    SERVE_HTTP,
    Connection,
    Json,
    Response,
    Server,
    headers_of,
    message,
    post,
)
from stops import (
    CUT,
    LONG,
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

DRAIN_SECONDS = 1
TWICE = "SIGTERM twice"
MODES = ("stateless", "stateful")


class Client:
    """A client of one era. `answered`: how many of its calls were; `hurried`: whether the server was told twice."""

    def __init__(self, server: Server, era: str, mode: str, stack: ExitStack) -> None:
        self.server, self.era = server, era
        self.answered, self.hurried = 0, False
        self._stack = stack
        self._ids = itertools.count()
        self._session: dict[str, str] = {}
        if era == LEGACY and mode == "stateful":
            connection = self.connect()
            connection.send(self.request("initialize", HELLO))
            response = self.receive(connection)
            assert response is not None
            self._session = {"Mcp-Session-Id": response.headers["mcp-session-id"]}
            connection.send(self._post(INITIALIZED))
            self.receive(connection)
            connection.close()

    def connect(self) -> Connection:
        """A new connection."""
        return self._stack.enter_context(Connection(self.server.port))

    def known(self) -> Connection:
        """A connection on which a request was answered."""
        connection = self.connect()
        connection.send(self.request("tools/list", {}))
        assert self.end(connection) == "ok"
        return connection

    def request(self, method: str, params: Mapping[str, Any]) -> bytes:
        """The bytes of one request, which wants to hear of its progress; its id is the next number."""
        rpc_id = next(self._ids)
        sent = message(self.era, rpc_id, method, dict(params))
        sent["params"]["_meta"] = {**sent["params"].get("_meta", {}), "progressToken": rpc_id}
        return self._post(sent)

    def call(self, tool: str, **arguments: float) -> bytes:
        """The bytes of one call."""
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def open_stream(self) -> Connection:
        """A stream for what the server sends by itself."""
        connection = self.connect()
        headers = {"Host": "127.0.0.1", "Accept": "text/event-stream", "MCP-Protocol-Version": self.era}
        connection.send(post(headers | self._session, b"", "GET"))
        connection.socket.recv(1, socket.MSG_PEEK)  # it is open
        return connection

    def receive(self, connection: Connection) -> Response | None:
        """The next response, which has to be whole; None if the connection ends before it."""
        try:
            response = connection.receive()
        except ConnectionError:
            return None
        except EOFError:
            raise AssertionError("the connection ends in the middle of an answer") from None
        if response is not None and response.body:
            assert response.headers["content-type"] in ("application/json", "text/event-stream"), response
            self.answered += sum("content" in each.get("result", {}) for each in response.messages)
        return response

    def end(self, connection: Connection) -> str:
        """How the next request on a connection ended."""
        response = self.receive(connection)
        assert response is not None, "the connection ends without an answer"
        return how_it_ended(response)

    @contextmanager
    def beginning(self, count: int) -> Iterator[None]:
        """Wait until so many calls more are in flight."""
        names = [event["event"] for event in self.server.events()]
        yield
        self.server.wait_for("begun", names.count("begun") + count)

    def _post(self, body: dict[str, Any]) -> bytes:
        return post(headers_of(body, self.era) | self._session, body)


def how_it_ended(response: Response) -> str:
    """How the only request of a response ended."""
    answers = [each for each in response.messages if "method" not in each]
    assert len(answers) == 1, response
    return outcome(answers[0])


Scene = Generator[None, None, None]
"""What a client does; the signal comes where it yields."""


def idle(_: Client) -> Scene:
    """Nothing."""
    yield


def kept_alive(client: Client) -> Scene:
    """Connections that wait for their next request are closed."""
    connections = [client.known() for _ in range(3)]
    yield
    assert [client.receive(connection) for connection in connections] == [None] * 3


def calls(tool: str, seconds: float, ends: str = "ok") -> Callable[[Client], Scene]:
    """Three calls, each on its connection, end in this way."""

    def scene(client: Client) -> Scene:
        connections = [client.connect() for _ in range(3)]
        with client.beginning(3):
            for connection in connections:
                connection.send(client.call(tool, seconds=seconds))
        yield
        assert [client.end(connection) for connection in connections] == [CUT if client.hurried else ends] * 3

    return scene


def get_stream(client: Client) -> Scene:
    """A stream that carries nothing is ended as streams are, not cut."""
    connection = client.open_stream()
    yield
    assert client.receive(connection) is not None


def listen_stream(client: Client) -> Scene:
    """A listen stream ends with its result."""
    connection = client.connect()
    connection.send(client.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}))
    connection.socket.recv(1, socket.MSG_PEEK)
    yield
    assert client.end(connection) == "ok"


def progress(client: Client) -> Scene:
    """A call goes on to report its progress, and its stream ends with its result."""
    connection = client.connect()
    with client.beginning(1):
        connection.send(client.call("step", seconds=0.5))
    yield
    response = client.receive(connection)
    assert response is not None
    steps = [each["params"]["progress"] for each in response.messages if "method" in each]
    if client.hurried:
        assert (steps, how_it_ended(response)) == (list(range(1, len(steps) + 1)), CUT)
    else:
        assert (steps, how_it_ended(response)) == (list(range(1, 11)), "ok")


def half_sent(share: float, *ends: str) -> Callable[[Client], Scene]:
    """A request of which this share was sent ends in one of these ways when the rest has come."""

    def scene(client: Client) -> Scene:
        connection, request = client.connect(), client.call("wait", seconds=0.1)
        half = int(len(request) * share)
        connection.send(request[:half])
        client.known()  # the server has seen what was sent before
        yield
        client.server.wait_for("draining")
        with suppress(ConnectionError):
            connection.send(request[half:])
        assert client.end(connection) in ends

    return scene


def never_sent(client: Client) -> Scene:
    """A request whose rest never comes is refused, or its connection closed."""
    connection, request = client.connect(), client.call("wait", seconds=0.1)
    connection.send(request[:-10])
    client.known()
    yield
    response = client.receive(connection)
    assert response is None or how_it_ended(response) != "ok"


def pipelined(client: Client) -> Scene:
    """Of five requests sent in one go the first ones are answered in order, the last of these with `close`."""
    connection = client.connect()
    with client.beginning(1):
        connection.send(b"".join(client.call("wait", seconds=0.1) for _ in range(5)))
    yield
    responses = [response for _ in range(5) if (response := client.receive(connection)) is not None]
    assert [how_it_ended(response) for response in responses] == ["ok"] * len(responses)
    ids = [response.messages[-1]["id"] for response in responses]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert len(responses) == 5 or responses[-1].headers["connection"] == "close"


def unread(client: Client) -> Connection:
    """A connection with an answer on its way that is too large for the system to take it."""
    connection = client.connect()
    connection.send(client.call("fill", size=8_000_000))
    client.server.wait_for("request", protocol_version=client.era, tool="fill")
    return connection


def slow_reader(client: Client) -> Scene:
    """An answer that is on its way to a client that takes its time arrives whole."""
    connection = unread(client)
    yield
    threading.Event().wait(DRAIN_SECONDS / 2)
    assert client.end(connection) == "ok"


def no_reader(client: Client) -> Scene:
    """An answer that its client does not read is given up."""
    unread(client)
    yield


def call_in_the_delay(client: Client) -> Scene:
    """Whoever still comes during the drain delay is served, on a connection that was there and on a new one."""
    connections = [client.known()]
    yield
    client.server.wait_for("draining")
    connections.append(client.connect())
    for connection in connections:
        connection.send(client.call("wait", seconds=0.1))
    assert [client.end(connection) for connection in connections] == ["ok", "ok"]


def late_calls(client: Client) -> Scene:
    """Calls that come one by one as connections are closed get no answer, or that of every call that is cut."""
    connections = [client.known() for _ in range(8)]
    yield
    client.server.wait_for("draining")
    pace = threading.Event()
    for connection in connections:
        with suppress(ConnectionError):
            connection.send(client.call("wait", seconds=LONG))
        pace.wait(0.01)
    responses = [client.receive(connection) for connection in connections]
    assert {how_it_ended(response) for response in responses if response is not None} <= {CUT}


class Load(NamedTuple):
    """What the clients do, and what becomes of it."""

    scene: Callable[[Client], Scene]
    seconds: float = DRAIN_SECONDS  # within which the process is gone
    owed: int = 0  # calls of each client that are in flight when the signal comes
    cut: int | None = 0  # calls of each client that get `shutting_down`; None if that depends on who is first
    lost: int = 0  # calls of each client that get no whole answer
    eras: tuple[str, ...] = (MODERN, LEGACY)
    stops: tuple[str, ...] = ("SIGTERM",)
    settings: Mapping[str, str] = {}


EVERY = ("SIGTERM", "SIGINT", TWICE)
LARGE = {"MCP_MAX_RESULT_BYTES": "9000000"}
CUT_SECONDS = DRAIN_SECONDS + 1
LOADS = {
    "idle": Load(idle, stops=EVERY),
    "connections kept alive": Load(kept_alive, stops=EVERY),
    "async calls": Load(calls("wait", 0.4), owed=3, stops=EVERY),
    "blocking calls": Load(calls("block", 0.4), owed=3, stops=EVERY),
    "async calls that outlast the drain": Load(calls("wait", LONG, CUT), CUT_SECONDS, owed=3, cut=3, stops=EVERY),
    "blocking calls that outlast the drain": Load(calls("block", LONG, CUT), CUT_SECONDS, owed=3, cut=3, stops=EVERY),
    "GET stream": Load(get_stream, eras=(LEGACY,), stops=EVERY),
    "listen stream": Load(listen_stream, eras=(MODERN,), stops=EVERY),
    "call that reports progress": Load(progress, owed=1, stops=EVERY),
    "half a head": Load(half_sent(0.2, "ok", "invalid_request", CUT), CUT_SECONDS, cut=None),  # not accepted yet
    "half a body": Load(half_sent(0.95, "ok")),
    "half a body and never the rest": Load(never_sent, CUT_SECONDS, cut=None),
    "five requests on one connection": Load(pipelined, 2 * DRAIN_SECONDS),
    "answer that is read slowly": Load(slow_reader, CUT_SECONDS, settings=LARGE),
    "answer that is not read": Load(no_reader, CUT_SECONDS + 2, lost=1, settings=LARGE),
    "call in the drain delay": Load(call_in_the_delay, 2, settings={"MCP_DRAIN_DELAY_SECONDS": "1"}),
    "calls as connections are closed": Load(late_calls, CUT_SECONDS, cut=None),
}


class Cell(NamedTuple):
    """One cell of the table."""

    mode: str
    load: str
    stop: str


CELLS = [Cell(mode, load, stop) for mode in MODES for load in LOADS for stop in LOADS[load].stops]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The default project with the probes dropped in, installed."""
    return install_probes(tmp_path_factory.mktemp("stops"))


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest, installed: Installed) -> Iterator[Callable[[Cell], None]]:
    """The chosen cells, running."""
    with side_by_side(request, lambda cell: stop_under_load(installed, cell)) as running:
        yield running


@contextmanager
def serving(installed: Installed, **settings: str) -> Iterator[Server]:
    """A server that listens."""
    with Server([installed.command, *SERVE_HTTP], settings) as server:
        server.wait_for("listening")
        yield server


def stop_under_load(installed: Installed, cell: Cell, *eras: str, **settings: str) -> None:
    """Stop a server and check its answers, its log, its exit code and its time; `eras`: of its clients, if not of all."""
    load = LOADS[cell.load]
    settings |= {"MCP_HTTP_SESSIONS": cell.mode, "MCP_DRAIN_TIMEOUT_SECONDS": str(DRAIN_SECONDS), **load.settings}
    with serving(installed, **settings) as server, ExitStack() as stack:
        clients = [Client(server, era, cell.mode, stack) for era in eras or load.eras]
        scenes = [load.scene(client) for client in clients]
        for scene in scenes:
            next(scene)
        since = monotonic()
        server.process.send_signal(signal.SIGINT if cell.stop == "SIGINT" else signal.SIGTERM)
        if cell.stop == TWICE:
            server.wait_for("draining")
            server.process.send_signal(signal.SIGTERM)
            for client in clients:
                client.hurried = True
        for scene in scenes:
            next(scene, None)
        code = code_at_end(server, since, 1 if cell.stop == TWICE else load.seconds)
        stopped = summary(server)
        cut, lost = stopped["cut_calls"], stopped["lost_calls"]
        assert lost == load.lost * len(clients)
        if load.cut is not None:
            assert cut == (load.owed if cell.stop == TWICE else load.cut) * len(clients)
        assert code == (1 if cut or lost else 0)
        # What was begun was answered: a call that gets no answer has not run.
        assert len(calls_in(server)) == sum(client.answered for client in clients) + lost


def calls_in(server: Server) -> list[Json]:
    """The log lines of calls."""
    return [event for event in server.events() if event["event"] == "request" and event["method"] == "tools/call"]


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_stop(cells: Callable[[Cell], None], cell: Cell) -> None:
    """Every call that was accepted has its answer, and the process is gone in time with the code that fits."""
    cells(cell)


@pytest.mark.parametrize("what", SABOTAGE)
def test_server_without_its_drain_is_found_out(installed: Installed, tmp_path: Path, what: str) -> None:
    """The cells above that need it fail, for clients of each kind."""
    settings = sabotaged(installed, tmp_path, what)
    stop_under_load(installed, Cell("stateless", "idle", "SIGTERM"), **settings)  # nothing else is wrong with it
    load = "async calls that outlast the drain" if what == "calls are not cut" else "async calls"
    with ThreadPoolExecutor() as pool:
        stops = [
            pool.submit(stop_under_load, installed, Cell(mode, load, "SIGTERM"), era, **settings)
            for mode, era in (("stateless", MODERN), ("stateless", LEGACY), ("stateful", LEGACY))
        ]
    assert [type(each.exception()) for each in stops] == [AssertionError] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_until_it_is_gone(installed: Installed, number: signal.Signals) -> None:
    """However often and however late it is signalled, it ends in order, with the code of what it did."""
    with serving(installed) as server:
        since = monotonic()
        while server.process.poll() is None:
            server.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                server.process.wait(0.002)
        assert code_at_end(server, since, 1) == 0
        summary(server)


def test_stop_while_a_dependency_opens(installed: Installed) -> None:
    """Nothing was accepted yet, so nothing is owed: it ends with 0, and does not wait."""
    with Server([installed.command, *SERVE_HTTP], {"PROBE_OPENS": str(LONG)}) as server:
        server.wait_for("opening")
        since = monotonic()
        server.process.terminate()
        assert code_at_end(server, since, 1) == 0


def test_second_signal_while_a_dependency_closes(installed: Installed) -> None:
    """It ends a cleanup that hangs."""
    with serving(installed, PROBE_CLOSES=str(LONG)) as server:
        server.process.terminate()
        server.wait_for("closing")
        since = monotonic()
        server.process.terminate()
        assert code_at_end(server, since, 1) == 1


def test_cleanup_that_fails(installed: Installed) -> None:
    """The process ends all the same, also with a thread that is still busy, after the answers are out."""
    settings = {"PROBE_FAILS": "1", "MCP_DRAIN_TIMEOUT_SECONDS": "0.2"}
    with serving(installed, **settings) as server, ExitStack() as stack:
        scene = calls("block", LONG, CUT)(Client(server, MODERN, "stateless", stack))
        next(scene)
        since = monotonic()
        server.process.terminate()
        next(scene, None)
        assert code_at_end(server, since, 1) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_as_process_1(installed: Installed, number: signal.Signals) -> None:
    """The first process of a container, to which no signal does anything by itself, stops as any other."""
    command = [installed.command, *SERVE_HTTP]
    with as_process_1(command, {}, "listening") as (server, pid), ExitStack() as stack:
        scenes = [calls("wait", 0.2)(Client(server, era, "stateless", stack)) for era in (MODERN, LEGACY)]
        for scene in scenes:
            next(scene)
        since = monotonic()
        os.kill(pid, number)
        for scene in scenes:
            next(scene, None)
        assert code_at_end(server, since, 1) == 0
        summary(server)
        assert not Path(f"/proc/{pid}").exists()


def get(connection: http.client.HTTPConnection, path: str) -> int:
    """The status of a path; the connection is made again when the last answer closed it."""
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status


def poll(connection: http.client.HTTPConnection, seen: list[tuple[float, int]], enough: threading.Event) -> None:
    """Ask for `/readyz` 50 times a second until nobody listens; `seen`: each answer's moment and status."""
    pace = threading.Event()
    with suppress(OSError, http.client.HTTPException):
        while not pace.wait(0.02):
            seen.append((monotonic(), get(connection, "/readyz")))
            if len(seen) == 10:
                enough.set()


def test_readiness_turns_off_at_once_and_for_good(installed: Installed) -> None:
    """It does so within 100 ms, while for the drain delay `/mcp` answers and `/livez` is 200."""
    latest = []
    for _ in range(2):  # another process may take both cores for as long, but hardly twice
        with serving(installed, MCP_DRAIN_DELAY_SECONDS="1") as server, ExitStack() as stack:
            probe, alive = (
                stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)))
                for _ in range(2)
            )
            clients = [Client(server, era, "stateless", stack) for era in (MODERN, LEGACY)]
            seen: list[tuple[float, int]] = []
            enough = threading.Event()
            polling = threading.Thread(target=poll, args=(probe, seen, enough))
            polling.start()
            assert enough.wait(PATIENCE)
            since = monotonic()
            server.process.terminate()
            while monotonic() < since + 0.8:
                assert get(alive, "/livez") == 200
                for client in clients:
                    connection = client.connect()
                    connection.send(client.call("wait", seconds=0.05))
                    assert client.end(connection) == "ok"
            assert code_at_end(server, since, 2) == 0
            assert monotonic() > since + 1
            polling.join(PATIENCE)
        statuses = [status for _, status in seen]
        off = statuses.index(503)
        assert (set(statuses[:off]), set(statuses[off:])) == ({200}, {503})
        latest.append(seen[off][0] - since)
        if latest[-1] < 0.1:
            return
    raise AssertionError(latest)


def test_blocking_calls_do_not_hold_up_others(installed: Installed) -> None:
    """While 45 blocking calls run, `/livez` and `server/discover` answer as fast as before, give or take 100 ms."""
    for _ in range(5):  # another process may take both cores for as long, but hardly each time
        with serving(installed) as server, ExitStack() as stack:
            client = Client(server, MODERN, "stateless", stack)
            alive = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)))
            connection = client.connect()
            before = slowest(client, connection, alive)
            connections = [client.connect() for _ in range(45)]
            for each in connections:
                each.send(client.call("block", seconds=1.0))
            during = slowest(client, connection, alive)
            done = calls_in(server)
            assert {client.end(each) for each in connections} == {"ok"}
        if during < before + 0.1 and not done:
            return
    raise AssertionError((before, during, len(done)))


def slowest(client: Client, connection: Connection, alive: http.client.HTTPConnection) -> float:
    """Seconds of the slowest of 20 requests, one after the other."""
    found = 0.0
    for number in range(20):
        asked = monotonic()
        if number % 2:
            assert get(alive, "/livez") == 200
        else:
            connection.send(client.request("server/discover", {}))
            assert client.end(connection) == "ok"
        found = max(found, monotonic() - asked)
    return found
