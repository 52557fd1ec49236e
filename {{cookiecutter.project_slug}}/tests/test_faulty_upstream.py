"""The faulty upstream itself: a fault that it does not play would leave the tests that rely on it green."""

import json
import math
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest

from .faulty_upstream import Answer, FaultyUpstream, Received
from .harness import PATIENCE, rest_of

WHOLE = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture
def http(upstream: FaultyUpstream) -> Iterator[httpx2.Client]:
    """A client of it, which keeps its connections."""
    with httpx2.Client(base_url=upstream.base_url, timeout=PATIENCE, trust_env=False) as client:
        yield client


def asked(upstream: FaultyUpstream, request: bytes = WHOLE) -> socket.socket:
    """A connection on which this has been sent."""
    host, _, port = upstream.base_url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    connection.sendall(request)
    return connection


# The script


def test_a_step_for_each_request_and_the_last_again_and_again(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """Before there is a script every request is answered 200; a new script starts from nothing."""
    assert [(answer.status_code, answer.json()) for answer in (http.get("/"), http.get("/"))] == [(200, {})] * 2
    upstream.play(Answer(503), Answer(429, headers={"Retry-After": "1"}), Answer(json={"rate": 1.1}))
    answers = [http.get("/") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [503, 429, 200, 200]
    assert answers[1].headers["retry-after"] == "1"
    assert answers[3].json() == {"rate": 1.1}
    assert len(upstream.requests) == 4
    upstream.play(Answer(500))
    assert upstream.requests == []
    assert http.get("/").status_code == 500


def test_what_it_was_asked_is_kept(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """With its body, whether that came with a length or in chunks, and when."""
    before = time.monotonic()
    http.post("/rates/x%20y?from=EUR&to=", json={"amount": 1}, headers={"Idempotency-Key": "k"})
    http.put("/", content=iter([b"a" * 20, b"b"]))
    first, second = upstream.requests
    assert (first.method, first.path, first.query) == ("POST", "/rates/x%20y", {"from": "EUR", "to": ""})
    assert (first.headers["idempotency-key"], first.headers["Idempotency-Key"]) == ("k", "k")
    assert first.json == {"amount": 1}
    assert (second.method, second.body) == ("PUT", b"a" * 20 + b"b")
    assert before < first.at < second.at < time.monotonic()


def test_connections_are_kept_until_either_side_ends_one(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """Answers without a body, and to HEAD, leave the connection in step."""
    upstream.play(Answer(json=[1]), Answer(204), Answer(304), Answer(json=[1]), Answer(cut="close"), Answer())
    answers = [http.request(method, "/") for method in ("HEAD", "GET", "GET", "PURGE")]
    assert [answer.status_code for answer in answers] == [200, 204, 304, 200]
    assert [answer.headers.get("content-length") for answer in answers] == ["3", None, None, "3"]
    assert upstream.connections == 1
    with asked(upstream, b"GET / HTTP/1.1\r\n\r\n") as connection:
        assert rest_of(connection).startswith(b"HTTP/1.1 200 OK\r\n")
    assert upstream.connections == 2
    with asked(upstream, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n") as connection:
        assert rest_of(connection).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_function_answers_what_it_was_asked(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """It may stand anywhere in a script."""
    upstream.play(Answer(503), lambda received: Answer(json=received.query))
    assert http.get("/").status_code == 503
    assert http.get("/", params={"to": "USD"}).json() == {"to": "USD"}


def test_a_function_that_fails_fails_the_test() -> None:
    """At the end of the block, where nothing else has; its client is left without an answer."""

    def refuse(received: Received) -> Answer:
        raise AssertionError(received.path)

    with pytest.raises(AssertionError, match="^/rates$"), FaultyUpstream() as upstream:
        upstream.play(refuse)
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.get(f"{upstream.base_url}/rates", trust_env=False)


# Faults


def test_a_delay_is_before_the_status_line(upstream: FaultyUpstream) -> None:
    """Nothing comes earlier."""
    upstream.play(Answer(json={}, delay=0.1))
    with asked(upstream) as connection:
        assert connection.recv(1) == b"H"
        assert time.monotonic() - upstream.requests[0].at >= 0.1


def test_a_slow_body_comes_a_few_bytes_at_a_time(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """With its whole length in front; a pace of `math.inf` stalls after the first bytes."""
    upstream.play(Answer(json={"rate": 1.1}, pace=(5, 0.02)), Answer(body=b"{}", pace=(1, math.inf)))
    answer = http.get("/")
    assert time.monotonic() - upstream.requests[0].at >= 0.04
    assert (answer.headers["content-length"], answer.json()) == ("13", {"rate": 1.1})
    with asked(upstream) as connection, connection.makefile("rb") as stream:
        assert b"content-length: 2\r\n" in list(iter(stream.readline, b"\r\n"))
        assert stream.read(1) == b"{"
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            stream.read(1)


def test_a_hang_lasts_until_the_client_leaves(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """It has been asked, and is at work on it until then."""
    upstream.play(Answer.hang())
    with pytest.raises(httpx2.ReadTimeout):
        http.get("/", timeout=httpx2.Timeout(PATIENCE, read=0.05))
    upstream.wait_for(1)
    upstream.wait_until_idle()
    with asked(upstream):
        assert len(upstream.wait_for(2)) == 2
        assert upstream.in_flight == 1
    upstream.wait_until_idle()


def test_a_reset_is_a_reset(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """It is no orderly end, neither at once nor within a body."""
    upstream.play(Answer.reset(), Answer.reset(after=b'{"rate"'), Answer.reset())
    with asked(upstream) as connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
    with asked(upstream) as connection:
        assert connection.recv(1) == b"H"
        with pytest.raises(ConnectionResetError):
            rest_of(connection)
    with pytest.raises(httpx2.ReadError):
        http.get("/")


def test_an_end_before_its_time(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """A connection that is closed without an answer, within a body, or after something that is not HTTP."""
    no_http = Answer(None, body=b"220 ready\r\n", cut="close")
    upstream.play(Answer(None, cut="close"), Answer.truncated(b'{"rate"'), no_http)
    with asked(upstream) as connection:
        assert rest_of(connection) == b""
    with http.stream("GET", "/") as answer:
        assert answer.headers["content-length"] == "8"
        with pytest.raises(httpx2.RemoteProtocolError):
            answer.read()
    with pytest.raises(httpx2.RemoteProtocolError):
        http.get("/")


def test_a_body_in_pieces_is_chunked(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """It has no length, and is the same for every request."""
    upstream.play(Answer(body=[b"{", b"", b"}"]))
    for answer in (http.get("/"), http.get("/")):
        assert (answer.headers["transfer-encoding"], answer.json()) == ("chunked", {})
    assert upstream.connections == 1


def test_a_body_without_an_end(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """It goes on until the client has had enough."""
    upstream.play(Answer.endless())
    with http.stream("GET", "/") as answer:
        body = answer.iter_raw(65536)
        assert all(next(body) == b" " * 65536 for _ in range(64))
        assert upstream.in_flight == 1
    upstream.wait_until_idle()


def test_a_huge_body_says_its_length(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """It is a right one, so that only its size can be what is refused; its size costs no memory."""
    upstream.play(Answer.huge(100_000, b'{"rate": 1.1}'), Answer.huge(10**10))
    answer = http.get("/")
    assert (len(answer.content), answer.json()) == (100_013, {"rate": 1.1})
    with http.stream("GET", "/") as answer:
        assert answer.headers["content-length"] == "10000000002"
        assert next(answer.iter_raw(65536)) == b" " * 65536
    upstream.wait_until_idle()


def test_a_gzip_bomb_is_small_on_the_way(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """And a right body when it has gone off."""
    upstream.play(Answer.gzip_bomb(4_000_000, b'{"rate": 1.1}'))
    with http.stream("GET", "/") as answer:
        packed = b"".join(answer.iter_raw())
    assert len(packed) < 5000
    inflated = zlib.decompress(packed, zlib.MAX_WBITS | 16)
    assert (len(inflated), json.loads(inflated)) == (4_000_013, {"rate": 1.1})
    assert http.get("/").json() == {"rate": 1.1}


@pytest.mark.skipif(sys.platform == "darwin", reason="127.0.0.1 is the only address of its loopback interface")
def test_a_redirect_leads_to_another_host(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """Each upstream has a port of its own, and if need be another address."""
    with FaultyUpstream(host="127.0.0.2") as other:
        upstream.play(Answer.redirect("/again", 307), Answer.redirect(f"{other.base_url}/rates?to=USD"))
        answer = http.get("/", follow_redirects=True)
        assert [(hop.status_code, hop.url.path) for hop in answer.history] == [(307, "/"), (302, "/again")]
        assert answer.url.host == "127.0.0.2"
        assert [(received.path, received.query) for received in other.requests] == [("/rates", {"to": "USD"})]


# Many at once, and the end


def test_how_many_are_in_flight(upstream: FaultyUpstream, http: httpx2.Client) -> None:
    """The peak stays known after they have been answered."""
    gate = threading.Event()

    def wait(received: Received) -> Answer:
        assert gate.wait(PATIENCE)
        return Answer(json=received.path)

    upstream.play(wait)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: http.get(f"/{number}").json(), range(8))
        assert {received.path for received in upstream.wait_for(8)} == {f"/{number}" for number in range(8)}
        assert (upstream.in_flight, upstream.connections) == (8, 8)
        gate.set()
        assert list(answers) == [f"/{number}" for number in range(8)]
    upstream.wait_until_idle()
    http.get("/8")
    assert upstream.peak == 8
    upstream.play(Answer())
    http.get("/")
    assert upstream.peak == 1


STEPS = {
    "answer": Answer(json={}),
    "delay": Answer(delay=30),
    "pace": Answer(body=b"{}", pace=(1, 30)),
    "hang": Answer.hang(),
    "reset": Answer.reset(),
    "reset within": Answer.reset(after=b"{"),
    "truncated": Answer.truncated(b"{"),
    "endless": Answer.endless(),
    "huge": Answer.huge(10**9),
}


PARTS = {
    "nothing": b"",
    "half a line": b"GET /",
    "half a head": b"GET / HTTP/1.1\r\nAccept: */*\r\n",
    "half a body": b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
    "half a chunk": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{",
    "one chunk": b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
}


@pytest.mark.parametrize(
    ("asks", "step"),
    [*((WHOLE, step) for step in STEPS.values()), *((part, Answer()) for part in PARTS.values())],
    ids=[*STEPS, *PARTS],
)
def test_nothing_outlives_the_block(asks: bytes, step: Answer, capfd: pytest.CaptureFixture[str]) -> None:
    """Clients that stay, and read nothing, are hung up on; of those that leave nothing is said. No thread is left."""
    threads = set(threading.enumerate())
    with FaultyUpstream() as upstream:
        upstream.play(step)
        started = time.monotonic()
        leaving, staying = asked(upstream, asks), asked(upstream, asks)
        if asks == WHOLE:
            upstream.wait_for(2)
        leaving.close()
        with asked(upstream):  # so that the other two have been accepted
            upstream.wait_for(3 if asks == WHOLE else 1)
    assert time.monotonic() - started < PATIENCE
    assert len(upstream.requests) == (3 if asks == WHOLE else 1)
    assert set(threading.enumerate()) == threads
    with staying, suppress(ConnectionResetError):
        rest_of(staying)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ConnectionRefusedError):
        asked(upstream)
