"""What a connection may send and hold before anybody is known to be on it: bytes, requests, time, descriptors.

Messages are told apart by one parser; what it does not take is refused, and read no further.
"""

import json
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from bootstrap import server_environment
from installed import Installed
from raw import (
    HELLO,
    LEGACY,
    MODERN,
    PATIENCE,
    SERVE_HTTP,
    Connection,
    Json,
    Server,
    Start,
    headers_of,
    message,
    post,
    resident,
)

pytestmark = [
    pytest.mark.install,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted in /proc, and lowered with prlimit"),
]

PROBE = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LAST = PROBE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
DESCRIPTORS, PLACES, PLACES_EACH = 256, 192, 48


def call(rpc_id: int | str, era: str = MODERN, **arguments: object) -> Json:
    """A call that is answered at once, or after so many seconds."""
    return message(era, rpc_id, "tools/call", {"name": "wait", "arguments": {"seconds": 0, **arguments}})


def asked(sent: Json, era: str = MODERN, **headers: str) -> bytes:
    """The bytes of a request."""
    return post(headers_of(sent, era) | headers, sent)


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


@pytest.fixture(scope="module")
def server(installed: Installed) -> Iterator[Server]:
    """One server for the tests that leave it as it was."""
    with Server([installed.command, *SERVE_HTTP]) as server:
        yield server


def exchanged(server: Server, *pieces: bytes) -> bytes:
    """What a connection answers until it is closed, when its bytes come in these pieces, each read by itself."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection, Connection(server.port) as other:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            try:
                connection.sendall(piece)
            except ConnectionError:
                break
            assert other.ask(PROBE).status == 200  # the server has turned since, and read the piece
        return all_of(connection)


def statuses(answered: bytes) -> list[int]:
    """Of the responses in these bytes."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answered)]


# --- one opinion of where a message ends

OFFER = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"}


@pytest.mark.parametrize("k", [1, 7, 30])
def test_body_is_never_rewritten(server: Server, k: int) -> None:
    """A body that looks like headers is a body, wherever reads end: it hides no request that is served."""
    inner = b"G" * (2 * k)
    body = b" " + b"\r\nupgrade:" * k + inner
    head = post(headers_of(call(1), MODERN), b"").replace(b"Content-Length: 0", b"Content-Length: %d" % len(body))
    answered = exchanged(server, head[:-1], b"\n" + body, asked(call("next"), Connection="close"))
    assert statuses(answered) == [400, 200]


@pytest.mark.parametrize("era", [MODERN, LEGACY])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_offer_of_another_protocol_is_declined(server: Server, era: str, is_chunked: bool) -> None:
    """A request that offers one, as Java's client sends it, is served whole, in whatever pieces; nothing behind it is."""
    sent = asked(call(1, era, note="x" * 2000), era, **OFFER)
    if is_chunked:
        head, _, body = sent.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (body[:10], body[10:]))
        sent = b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""]) + chunks + b"0\r\n\r\n"
    smuggled = asked(call("smuggled", era), era)
    for cut in (1, len(sent) // 4, sent.index(b"\r\n\r\n") + 3, sent.index(b"\r\n\r\n") + 4, len(sent) - 1):
        answered = exchanged(server, sent[:cut], sent[cut:] + smuggled)
        assert statuses(answered) == [200]
        assert json.loads(answered.partition(b"\r\n\r\n")[2])["result"]["structuredContent"] == {"result": "done"}


def test_offer_behind_other_requests(server: Server) -> None:
    """Answers that are owed come first, in their order."""
    sent = asked(call("a")) + asked(call("b"), **OFFER) + asked(call("c"))
    answered = exchanged(server, sent)
    assert statuses(answered) == [200, 200]
    assert answered.index(b'"id":"a"') < answered.index(b'"id":"b"')


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /livez HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"POST /mcp HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\nHost: a\n\n", 400),
    ],
)
def test_refused_connection_is_read_no_further(server: Server, sent: bytes, status: int) -> None:
    """What two readers may read differently is answered once, and what follows not at all."""
    answered = exchanged(server, sent + PROBE * 5, PROBE)
    assert statuses(answered) == [status]
    assert json.loads(answered.rpartition(b"\r\n\r\n")[2])["error"]["data"]["code"] == "invalid_request"


@pytest.mark.parametrize(("start", "rest"), [(b"5\r\n", b"abcde\r\nno chunk\r\n"), (b"ffffff\r\n", b"X" * (3 << 20))])
def test_request_that_is_answered_without_its_body_has_one_answer(server: Server, start: bytes, rest: bytes) -> None:
    """Whatever comes in the place of the rest of it."""
    lines = "POST /mcp HTTP/1.1", "Host: 127.0.0.1", "Content-Type: text/plain", "Transfer-Encoding: chunked", "", ""
    assert statuses(exchanged(server, "\r\n".join(lines).encode() + start, rest)) == [415]


def test_target_with_a_host_decides(server: Server) -> None:
    """The Host header beside an absolute target is not looked at (RFC 9112, section 3.2.2)."""
    port = server.port
    right = b"GET http://127.0.0.1:%d HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n" % port
    wrong = b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert [statuses(exchanged(server, each)) for each in (right, wrong)] == [[200], [421]]


@pytest.mark.parametrize("era", [MODERN, LEGACY])
def test_stream_over_http_1_0_ends_with_the_connection(server: Server, era: str) -> None:
    """Older proxies, nginx as it comes, speak it: no chunk is sent to them."""
    sent = message(era, 1, "tools/call", {"name": "stocktake", "arguments": {"pause_ms": 0}})
    sent["params"]["_meta"] = sent["params"].get("_meta", {}) | {"progressToken": "t"}
    answered = exchanged(server, post(headers_of(sent, era), sent).replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = answered.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body.startswith(b"event: message")
    assert b'"structuredContent"' in body


def test_pipelined_requests_are_few(server: Server) -> None:
    """Thousands in one write are all answered, in their order, and others are served between them."""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection, Connection(server.port) as other:
        connection.sendall(PROBE * 3000 + LAST)
        assert other.ask(PROBE).status == 200
        assert statuses(all_of(connection)) == [200] * 3001


def test_pipelined_requests_behind_a_call_are_not_kept(start: Start) -> None:
    """A few are; the others stay where they are, in the network, until it has its answer."""
    server = start("http")
    with Connection(server.port) as other, ExitStack() as stack:
        assert other.ask(PROBE).status == 200
        before = resident(server.process.pid)
        for _ in range(4):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
            connection.sendall(asked(call(1, seconds=60)) + PROBE * 20_000)
            for _ in range(20):
                assert other.ask(PROBE).status == 200
        assert resident(server.process.pid) - before < 3 << 10  # those of one read would be three each


def test_empty_lines_between_requests_are_few(server: Server) -> None:
    """Some clients send one; thousands are no HTTP. None of them keeps an idle connection."""
    assert statuses(exchanged(server, PROBE, b"\r\n", LAST)) == [200, 200]
    assert statuses(exchanged(server, PROBE, b"\r\n" * 3000, PROBE)) == [200, 400]


# --- places


@contextmanager
def crowded(
    server: Server, count: int, sent: bytes, *, answered: bool, source: str = "127.0.0.1"
) -> Iterator[ExitStack]:
    """So many connections that have sent something."""
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), PATIENCE, source_address=(source, 0))
            )
            connection.sendall(sent)
            if answered:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        yield stack


@pytest.fixture
def small(installed: Installed) -> Iterator[Server]:
    """A server with few descriptors."""
    line = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", installed.command, *SERVE_HTTP]
    with Server(line, {"MCP_LOG_LEVEL": "INFO"}) as server:
        yield server


def descriptors(server: Server) -> int:
    """How many the process has open."""
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("sent", [PROBE, b"POST /mcp HTTP/1.1\r\nHost: a\r\nContent-Le"], ids=["idle", "half a head"])
def test_idle_connections_give_way(small: Server, installed: Installed, sent: bytes) -> None:
    """More than there are descriptors, from several addresses: whoever comes is served, probes too, and it is logged once."""
    with ExitStack() as stack:
        for number in range(2, 9):
            stack.enter_context(
                crowded(small, PLACES_EACH + 10, sent, answered=sent == PROBE, source=f"127.0.0.{number}")
            )
        with Connection(small.port) as connection:
            assert connection.ask(asked(call(1))).status == 200
        settings = server_environment({"MCP_TRANSPORT": "http", "MCP_PORT": str(small.port)})
        assert subprocess.run([installed.command, "healthcheck"], env=settings, check=False).returncode == 0
        assert descriptors(small) < DESCRIPTORS
    told = [event for event in small.events() if event["event"] == "connections_full"]
    assert [event["most"] for event in told if "client" not in event] == [PLACES]
    assert len({event.get("client") for event in told}) == len(told)


def test_one_address_takes_no_more_than_its_part(small: Server) -> None:
    """Its oldest idle connections are closed, and nobody else's."""
    with Connection(small.port) as other:
        assert other.ask(PROBE).status == 200
        with crowded(small, PLACES_EACH * 3, PROBE, answered=True, source="127.0.0.2"):
            assert descriptors(small) < DESCRIPTORS // 2
            assert other.ask(PROBE).status == 200


def test_the_one_that_was_answered_first_gives_way(small: Server) -> None:
    """However long it has been connected: the others of its address are answered on."""
    with ExitStack() as stack:
        crowd = [stack.enter_context(Connection(small.port, address="127.0.0.2")) for _ in range(PLACES_EACH)]
        for each in [*crowd, crowd[0]]:
            assert each.ask(PROBE).status == 200
        with Connection(small.port, address="127.0.0.2") as late:
            assert late.ask(PROBE).status == 200
            crowd[1].send(b"")
            assert crowd[1].receive("GET") is None
            for each in (crowd[0], *crowd[2:]):
                assert each.ask(PROBE).status == 200


def test_who_comes_back_at_once_is_refused(small: Server) -> None:
    """One that takes its own places again and again is given a few hundred more, and then few: it is not worth serving.

    It loses none that it has, and another address is served as ever.
    """
    with ExitStack() as stack:
        kept: deque[Connection] = deque()
        refusals = [b""]
        for came in range(20 * PLACES):
            late = stack.enter_context(Connection(small.port, address="127.0.0.2"))
            late.send(PROBE)
            with suppress(ConnectionResetError):  # as it is closed before what it sends is read
                if (answer := late.receive("GET")) is not None and answer.status == 200:
                    kept.append(late)
                    if len(kept) > PLACES_EACH + 5:
                        kept.popleft().close()  # the server has closed it before
                    continue
                refusals.append(b"" if answer is None else answer.body)
            assert came >= PLACES_EACH + 2 * PLACES
            if b"Retry after 1 s." in refusals[-1]:
                break
        assert b"Retry after 1 s." in refusals[-1]
        assert kept[-1].ask(PROBE).status == 200
        with Connection(small.port, address="127.0.0.3") as other:
            assert other.ask(asked(call(1))).status == 200
    assert len(small.wait_for("connections_full")) == 1


def test_calls_do_not_give_way(small: Server) -> None:
    """A connection that is owed an answer stays; a new one of the address is refused while all are."""
    with crowded(small, PLACES_EACH, asked(call(1, seconds=60)), answered=False):
        with socket.create_connection(("127.0.0.1", small.port), PATIENCE) as late:
            assert all_of(late).startswith(b"HTTP/1.1 503 ")
        with socket.create_connection(("127.0.0.1", small.port), PATIENCE, source_address=("127.0.0.9", 0)) as other:
            other.sendall(PROBE)
            assert other.recv(65536).startswith(b"HTTP/1.1 200")


def test_descriptors_that_run_out_are_logged(small: Server) -> None:
    """Once when none is left, and once when there are some again."""
    small.wait_for("listening")
    subprocess.run(["prlimit", f"--pid={small.process.pid}", "--nofile=10:256"], check=True)
    small.wait_for("descriptors_exhausted")
    subprocess.run(["prlimit", f"--pid={small.process.pid}", "--nofile=256:256"], check=True)
    small.wait_for("descriptors_back")


def test_bodies_that_do_not_end_are_bounded(start: Start) -> None:
    """One caller's unfinished bodies are held up to its part; more are refused, and others' are not."""
    server, size = start("http"), 1 << 20
    server.wait_for("listening")
    head = post(headers_of(call(1), MODERN), b"").replace(b"Content-Length: 0", b"Content-Length: %d" % size)
    before = resident(server.process.pid)
    with ExitStack() as stack:
        held = []
        for _ in range(60):
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), PATIENCE, source_address=("127.0.0.2", 0))
            )
            connection.sendall(head + b" " * (size - 1))
            held.append(connection)
        refused = server.wait_for("request", 40, outcome="overloaded")
        assert {event["client"] for event in refused} == {"127.0.0.2"}
        assert resident(server.process.pid) - before < 40 << 10
        good = asked(call(2, note="x" * 9000))
        with Connection(server.port) as other:
            assert other.ask(good).status == 200


def test_answers_that_nobody_reads_are_bounded(start: Start) -> None:
    """An answer is a thousand times its request. Who does not read is closed, whoever has waited longest first; others
    get theirs, those too who read slowly."""
    server, size = start("http", caller_share="1"), 900_000
    large = asked(call(1, size=size))
    with Connection(server.port) as other:
        assert other.ask(large).status == 200
    before = resident(server.process.pid)
    with ExitStack() as stack:
        slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE))
        slow.sendall(large)
        assert slow.recv(65536, socket.MSG_PEEK)
        for number in range(60):
            link = stack.enter_context(socket.socket())
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.bind(("127.0.0.2", 0))
            link.connect(("127.0.0.1", server.port))
            link.sendall(large)
            server.wait_for("request", number + 3, outcome="ok")
        (told,) = server.wait_for("answers_not_read")
        assert (told["client"], told["unread_bytes"] > 8 << 20) == ("127.0.0.2", True)
        assert resident(server.process.pid) - before < 60 << 10
        with Connection(server.port) as other:
            assert other.ask(large).status == 200
        answer = b""
        while len(answer) < size:
            answer += slow.recv(65536)
    assert len([event for event in server.events() if event["event"] == "answers_not_read"]) == 1


# --- addresses and signals


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no sockets of both families")
def test_any_address_is_of_both_families(start: Start) -> None:
    """`MCP_HOST=::` is reached over IPv4 too, and callers there have their own address."""
    server = start("http", host="::")
    with Connection(server.port) as connection:
        assert connection.ask(asked(call("four"))).status == 200
    with socket.create_connection(("::1", server.port), PATIENCE) as connection:
        connection.sendall(asked(call("six")))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    clients = {event["rpc_id"]: event["client"] for event in server.wait_for("request", 2)}
    assert clients == {"four": "127.0.0.1", "six": "::1"}


@pytest.fixture
def heard() -> Iterator[None]:
    """SIGHUP is not ignored, as whoever runs the tests with `nohup` would have it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("era", [MODERN, LEGACY])
@pytest.mark.parametrize("transport", ["stdio", "http"])
@pytest.mark.usefixtures("heard")
def test_hangup_is_a_stop_like_any_other(start: Start, transport: str, era: str) -> None:
    """A terminal that closes loses no call: SIGHUP drains."""
    server = start(transport)
    sent = call(1, era, seconds=0.5)
    if transport == "http":
        with Connection(server.port) as connection:
            connection.send(asked(sent, era))
            with Connection(server.port) as other:
                assert other.ask(PROBE).status == 200
            server.process.send_signal(signal.SIGHUP)
            response = connection.receive()
        assert response is not None
        (answer,) = response.messages
    else:
        if era == LEGACY:
            server.send(message(LEGACY, 0, "initialize", HELLO))
            server.receive()
        server.send(sent, message(era, 2, "tools/list"))
        assert json.loads(server.receive())["id"] == 2
        server.process.send_signal(signal.SIGHUP)
        answer = json.loads(server.receive())
    assert answer["result"]["structuredContent"] == {"result": "done"}
    assert server.wait() == 0
