"""The load generator: `load.py '{"transport": "http", ...}'` prints what it measured as JSON. Standard library only.

Plain sockets and pipes in one loop that waits in the kernel: an HTTP client or an event loop would be the bottleneck.
Every answer is parsed and checked, so that a server that answers errors fast does not win.
"""

import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PATIENCE = 30  # seconds for an answer
WARM_UP = 0.2  # seconds
WINDOW = 32  # calls in flight on a pipe: they and their answers fit it, so that writing never blocks

VERSIONS = {"legacy": "2025-11-25", "modern": "2026-07-28"}
CLIENT = {"name": "load", "version": "0"}
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": VERSIONS["modern"],
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
HANDSHAKE = {"protocolVersion": VERSIONS["legacy"], "capabilities": {}, "clientInfo": CLIENT}


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Start processes on this core, where the platform can: they inherit it from the thread, which moves back."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


ADD = {"name": "add", "arguments": {"a": 2, "b": 3}}
CONVERT = {"name": "convert_price", "arguments": {"sku": "BRG-6204", "currency": "USD"}}


def call(rpc_id: int, era: str, tool: dict[str, Any] = ADD) -> bytes:
    """The one call that is measured, or one of another tool."""
    params = dict(tool)
    if era == "modern":
        params["_meta"] = ENVELOPE
    return json.dumps({"jsonrpc": "2.0", "id": rpc_id, "method": "tools/call", "params": params}).encode()


def check(answer: bytes) -> int:
    """Raise unless this is a right result of the call; its id."""
    try:
        found = json.loads(answer)
        if found["result"]["content"][0]["text"] == "5" and not found["result"].get("isError"):
            return int(found["id"])
    except (ValueError, LookupError, TypeError):
        pass
    raise ValueError(f"wrong answer: {answer.decode(errors='replace')}")


# --- HTTP -------------------------------------------------------------------------------------------------------------

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_DATA = re.compile(rb"^data: *(\S.*?)\r?$", re.MULTILINE)


class Connection:
    """A kept-alive connection with one call at a time on its way."""

    def __init__(self, port: int, era: str, authorization: str, tool: dict[str, Any] = ADD) -> None:
        body = call(1, era, tool)
        lines = [
            "POST /mcp HTTP/1.1",
            "Host: 127.0.0.1:80",  # the servers look at the name only
            "Content-Type: application/json",
            "Accept: application/json, text/event-stream",
            f"Content-Length: {len(body)}",
            f"MCP-Protocol-Version: {VERSIONS[era]}",
            *(["Mcp-Method: tools/call", f"Mcp-Name: {tool['name']}"] if era == "modern" else []),
            *([f"Authorization: {authorization}"] if authorization else []),
        ]
        self._request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self._buffer = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send()

    def send(self) -> None:
        """Make the call."""
        self.sent = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Read what is there; whether the answer is complete, and right."""
        data = self.socket.recv(65536)
        if not data:
            raise ValueError("the server closed the connection")
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        if found := _LENGTH.search(head):
            if len(body) < int(found[1]):
                return False
        elif not self._buffer.endswith(b"\r\n0\r\n\r\n"):
            return False
        else:
            body = _joined(body)
        if b"text/event-stream" in head:
            body = _DATA.findall(body)[-1]
        if not head.startswith(b"HTTP/1.1 200"):
            raise ValueError(f"status {head[9:12].decode()}: {body.decode(errors='replace')}")
        check(body)
        self._buffer = b""
        return True


def _joined(body: bytes) -> bytes:
    chunks = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        chunks.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(chunks)


def http(port: int, era: str, connections: int, seconds: float, authorization: str = "") -> dict[str, float]:
    """Keep each connection busy with one call after the other. `busy`: the share of the time this process computed."""
    took = []
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            connection = Connection(port, era, authorization)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        now = time.perf_counter()
        began, used = now + WARM_UP, time.process_time()
        while now < began + seconds:
            ready = selector.select(PATIENCE)
            if not ready:
                raise ValueError(f"no answer for {PATIENCE} s")
            for key, _ in ready:
                if key.data.receive():
                    now = time.perf_counter()
                    if now >= began:
                        took.append(now - key.data.sent)
                    key.data.send()
        busy = (time.process_time() - used) / (now - began + WARM_UP)
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    p99 = statistics.quantiles(took, n=100)[-1]
    return {"rate": len(took) / (now - began), "p50": statistics.median(took), "p99": p99, "busy": busy}


def callers(port: int, connections: int, authorization: str = "") -> None:
    """Keep calling a tool whose upstream hangs, until this process is ended. Each caller who is refused waits as told.

    Prints a line when the first of them have been refused: the rest is waiting then.
    """
    waiting: dict[Connection, float] = {}  # until when
    with selectors.DefaultSelector() as selector:
        for _ in range(connections):
            connection = Connection(port, "modern", authorization, CONVERT)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        while True:
            for key, _ in selector.select(max(0, min(waiting.values()) - time.monotonic()) if waiting else None):
                _, _, body = key.data.socket.recv(65536).partition(b"\r\n\r\n")  # it comes in one piece
                error = json.loads(body)["result"]["_meta"]["plinth/error"]
                if not waiting:
                    print(error["code"], flush=True)
                waiting[key.data] = time.monotonic() + error.get("retry_after_ms", 1000) / 1000
            for connection in [each for each, until in waiting.items() if until <= time.monotonic()]:
                del waiting[connection]
                connection.send()


# --- stdio ------------------------------------------------------------------------------------------------------------


class Pipes:
    """The two pipes of a server, with numbered calls on them."""

    def __init__(self, process: subprocess.Popen[bytes], era: str) -> None:
        assert process.stdin and process.stdout
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._call = call(0, era).replace(b'"id": 0', b'"id": %d') + b"\n"
        self._rest = b""
        self._last = 0
        self._waiting: set[int] = set()
        if era == "legacy":
            hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HANDSHAKE}
            os.write(self._in, json.dumps(hello).encode() + b"\n")
            self._lines()
            os.write(self._in, b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')

    def send(self, calls: int) -> None:
        """Write this many calls at once."""
        numbers = range(self._last + 1, self._last + 1 + calls)
        self._last += calls
        self._waiting.update(numbers)
        os.write(self._in, b"".join(self._call % number for number in numbers))

    def receive(self) -> int:
        """Read what is there, one answer at least; how many there were."""
        lines = self._lines()
        for line in lines:
            self._waiting.remove(check(line))
        return len(lines)

    def run(self, window: int, seconds: float) -> tuple[float, float]:
        """Keep this many calls in flight; calls a second, and the median time from writing to reading."""
        took = []
        answers, sent = 0, time.perf_counter()
        began = sent + WARM_UP
        self.send(window)
        while sent < began + seconds:
            got = self.receive()
            now = time.perf_counter()
            if now >= began:
                answers += got
                took.append(now - sent)
            sent = now
            self.send(got)
        rate = answers / (sent - began)
        while self._waiting:
            self.receive()
        return rate, statistics.median(took)

    def _lines(self) -> list[bytes]:
        while b"\n" not in self._rest:
            data = os.read(self._out, 65536)
            if not data:
                raise ValueError("the server ended")
            self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return lines


def stdio(command: list[str], era: str, seconds: float, server_core: int | None) -> dict[str, float]:
    """Start a server, call it one call at a time, then many at once. With no seconds, once: time and memory in MB."""
    began = time.perf_counter()
    with pinned(server_core):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    watchdog = threading.Timer(PATIENCE + seconds, process.kill)
    watchdog.start()
    try:
        with process:
            pipes = Pipes(process, era)
            pipes.send(1)
            pipes.receive()
            if seconds:
                _, p50 = pipes.run(1, seconds)
                rate, _ = pipes.run(WINDOW, seconds)
                return {"rate": rate, "p50": p50}
            start = time.perf_counter() - began
            resident = subprocess.check_output(["ps", "-o", "rss=", "-p", str(process.pid)])
            return {"start": start, "memory": int(resident) / 1024}
    finally:
        process.kill()
        watchdog.cancel()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    measure = {"http": http, "stdio": stdio, "callers": callers}[asked.pop("transport")]
    try:
        print(json.dumps(measure(**asked)))
    except (OSError, ValueError) as error:
        print(json.dumps({"problem": str(error)[:300]}))
