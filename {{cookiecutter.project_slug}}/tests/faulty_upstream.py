"""A service that your tools call, on a bad day: a real HTTP server on a free loopback port that plays a script.

with FaultyUpstream() as upstream:
    upstream.play(Answer(503), Answer.reset(), Answer(json={"rate": 1.1}))
"""

import itertools
import json
import math
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import responses
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

import httpx2

from .harness import PATIENCE

PIECE = 65536  # bytes
NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # closing sends RST


@dataclass(frozen=True)
class Received:
    """One request. `path`: as it was sent, without the query. `at`: when it had come whole (time.monotonic seconds)."""

    method: str
    path: str
    query: dict[str, str]
    headers: httpx2.Headers
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What one request is answered.

    `status`: None leaves out the status line and the headers, so that only the body is sent. `json` takes the place of
    `body`; a body in several pieces is chunked. `headers` win over those that come of the body. `delay`: seconds before
    the status line. `pace`: of the body, bytes at a time and seconds between; `math.inf` stalls. `cut`: how the
    connection ends after it; without it, it is kept.
    """

    status: int | None = 200
    json: Any = None
    body: bytes | Iterable[bytes] = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    pace: tuple[int, float] = (PIECE, 0.0)
    cut: Literal["close", "reset"] | None = None

    @staticmethod
    def hang() -> "Answer":
        """Nothing, until the client leaves."""
        return Answer(delay=math.inf)

    @staticmethod
    def reset(after: bytes | None = None) -> "Answer":
        """The connection is reset (RST): at once, or `after` status line, headers and this part of the body."""
        return Answer(None, cut="reset") if after is None else replace(Answer.truncated(after), cut="reset")

    @staticmethod
    def truncated(body: bytes) -> "Answer":
        """The connection is closed a byte before the length that was said."""
        return Answer(body=body, headers={"Content-Length": str(len(body) + 1)}, cut="close")

    @staticmethod
    def endless() -> "Answer":
        """White space, until the client leaves."""
        return Answer(body=itertools.repeat(b" " * PIECE))

    @staticmethod
    def huge(size: int, body: bytes = b"{}") -> "Answer":
        """A right body behind `size` bytes of white space, with its length."""
        return Answer(body=_padded(size, body), headers={"Content-Length": str(size + len(body))})

    @staticmethod
    def gzip_bomb(size: int, body: bytes = b"{}") -> "Answer":
        """The same, a thousandth of its size on the way; 100 MB take half a second to pack."""
        packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        packed = b"".join([*map(packer.compress, _padded(size, body)), packer.flush()])
        return Answer(body=packed, headers={"Content-Encoding": "gzip"})

    @staticmethod
    def redirect(to: str, status: int = 302) -> "Answer":
        """`to`: an address, or a path here."""
        return Answer(status, headers={"Location": to})

    @property
    def content(self) -> bytes | Iterable[bytes]:
        """The body, or the JSON in its place."""
        return self.body if self.json is None else json.dumps(self.json).encode()

    @property
    def chunked(self) -> bool:
        """Whether the body is sent in chunks (RFC 9112, section 7.1)."""
        length_known = isinstance(self.content, bytes) or "Content-Length" in httpx2.Headers(self.headers)
        return self.status is not None and not length_known

    @property
    def pieces(self) -> Iterator[bytes]:
        """What is sent at a time."""
        size = self.pace[0]
        for part in [self.content] if isinstance(self.content, bytes) else self.content:
            yield from (part[start : start + size] for start in range(0, len(part), size))


Step = Answer | Callable[[Received], Answer]


class FaultyUpstream:
    """The service, while it is entered. Until it is given a script it answers 200 and `{}`.

    `requests`: what it was asked, in the order of arrival. `connections`: how many it ever took. `in_flight`: how many
    requests are being answered. `peak`: how many ever were at once. `failures`: what the script's functions raised.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        """`host`: any loopback address."""
        self.requests: list[Received] = []
        self.connections = self.in_flight = self.peak = 0
        self.failures: list[BaseException] = []
        self._changed = threading.Condition()
        self._steps: tuple[Step, ...] = (Answer(json={}),)
        self._listener = _Listener(self, host)
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,))
        self.base_url = f"http://{host}:{self._listener.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, raised: object, *_: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.hang_up()
        self._listener.server_close()
        if self.failures and raised is None:
            raise self.failures[0]

    def play(self, first: Step, *more: Step) -> None:
        """Start a new script, and forget what was asked: a step for each request, the last one again and again.

        A function is given the request and returns its answer. What it raises drops the connection, and fails the test
        at the end of the block.
        """
        with self._changed:
            self._steps, self.requests, self.peak = (first, *more), [], self.in_flight

    def wait_for(self, count: int) -> list[Received]:
        """Wait until so many requests have come.

        In a coroutine `await anyio.to_thread.run_sync(upstream.wait_for, 2)`, as its client has to go on.
        """
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, PATIENCE), self.requests
            return self.requests[:count]

    def wait_until_idle(self) -> None:
        """Wait until nothing is in flight: everything is answered, or its client has left."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.in_flight == 0, PATIENCE), self.requests

    @contextmanager
    def answering(self, received: Received) -> Iterator[Answer]:
        """The answer to one more request, which is in flight meanwhile."""
        with self._changed:
            step = self._steps[min(len(self.requests), len(self._steps) - 1)]
            self.requests.append(received)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self._changed.notify_all()
        try:
            yield step if isinstance(step, Answer) else self._asked(step, received)
        finally:
            with self._changed:
                self.in_flight -= 1
                self._changed.notify_all()

    def _asked(self, step: Callable[[Received], Answer], received: Received) -> Answer:
        try:
            return step(received)
        except BaseException as error:  # noqa: BLE001 - whatever it is, pytest.fail too, it belongs to the test's thread
            self.failures.append(error)
            return Answer(None, cut="close")


class _Listener(ThreadingTCPServer):
    """A thread for each connection, none of which outlives the block."""

    request_queue_size = 128

    def __init__(self, upstream: FaultyUpstream, host: str) -> None:
        self.upstream = upstream
        self._open: set[Any] = set()
        self._lock = threading.Lock()
        super().__init__((host, 0), _Conversation)

    def hang_up(self) -> None:
        """Wake every thread: reads find an end, writes fail."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # its client has left
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In the listener's thread, so that `hang_up` misses none."""
        self.upstream.connections += 1
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close it, and nothing before: FIN in front of RST would be an end like any other."""
        with self._lock:
            self._open.discard(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is none."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            self.upstream.failures.append(error)


class _Conversation(StreamRequestHandler):
    """One connection: HTTP/1.1 as in RFC 9112, one request after the other."""

    disable_nagle_algorithm = True
    server: _Listener

    def handle(self) -> None:
        """Until either side has had enough."""
        while self.answer(self.receive()):
            pass

    def receive(self) -> Received:
        """The next request; a client that leaves before its end has asked nothing."""
        method, target, _ = self.read_line().decode("latin-1").split(" ")
        path, _, query = target.partition("?")
        fields = [line.partition(b":") for line in iter(self.read_line, b"")]
        headers = httpx2.Headers([(name, value.strip()) for name, _, value in fields])
        chunked = "Transfer-Encoding" in headers
        body = b"".join(self.read_chunks()) if chunked else self.read(int(headers.get("Content-Length", 0)))
        asked = dict(parse_qsl(query, keep_blank_values=True))
        return Received(method, path, asked, headers, body, time.monotonic())

    def answer(self, received: Received) -> bool:
        """Whether another request may follow."""
        with self.server.upstream.answering(received) as answer:
            self.pause(answer.delay)
            if answer.status is not None:
                self.send_head(answer.status, answer)
            if received.method != "HEAD":
                self.send_body(answer)
            if answer.cut == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        return answer.cut is None and received.headers.get("Connection", "").lower() != "close"

    def send_head(self, status: int, answer: Answer) -> None:
        headers = httpx2.Headers() if answer.json is None else httpx2.Headers({"Content-Type": "application/json"})
        if answer.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif isinstance(answer.content, bytes) and status not in (204, 304):  # which have no body
            headers["Content-Length"] = str(len(answer.content))
        headers.update(answer.headers)
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.multi_items())
        self.wfile.write(f"HTTP/1.1 {status} {responses.get(status, '')}\r\n{fields}\r\n".encode())

    def send_body(self, answer: Answer) -> None:
        for number, piece in enumerate(answer.pieces):
            if number:
                self.pause(answer.pace[1])
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.chunked else piece)
        if answer.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def pause(self, seconds: float) -> None:
        """A client that leaves, or the end of the block, cuts it short, and the answer with it."""
        if seconds == 0:
            return
        self.connection.settimeout(None if seconds == math.inf else seconds)
        with suppress(TimeoutError):
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
        self.connection.settimeout(None)

    def read_chunks(self) -> Iterator[bytes]:
        while size := int(self.read_line().partition(b";")[0], 16):
            yield self.read(size)
            self.read_line()
        while self.read_line():  # trailers
            pass

    def read(self, size: int) -> bytes:
        found = self.rfile.read(size)
        if len(found) < size:
            raise ConnectionAbortedError
        return found

    def read_line(self) -> bytes:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError
        return line.strip()


def _padded(size: int, body: bytes) -> list[bytes]:
    """`size` bytes of white space and the body, which take no more memory than a piece."""
    whole, rest = divmod(size, PIECE)
    return [b" " * PIECE] * whole + [b" " * rest, body]
