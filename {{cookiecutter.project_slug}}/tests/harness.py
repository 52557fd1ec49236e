"""The server as a process, and raw JSON-RPC to talk to it: a client library would hide faults.

Nothing is mocked. Servers listen on free loopback ports, and every wait has a limit.
"""

import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

import httpx2

PACKAGE = "{{ cookiecutter.package_name }}"
ERROR = "plinth/error"
LEGACY, MODERN = "2025-11-25", "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
PATIENCE = 30  # seconds; a start takes two on a busy machine, and ten times as much on a crowded one

Transport = Literal["stdio", "http"]
Json = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One of the four ways to reach the server."""

    transport: Transport
    version: str

    def __str__(self) -> str:
        return f"{self.transport}-{'modern' if self.version == MODERN else 'legacy'}"


WAYS = [Way(transport, version) for transport in ("stdio", "http") for version in (MODERN, LEGACY)]
STDIO, HTTP = WAYS[:2], WAYS[2:]
SERVE_HTTP = ("serve", "--transport", "http", "--port", "0")


def environment(source: Path | None = None, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings, so that a developer's `MCP_` and `OTEL_` variables change nothing.

    Tests call more often than a client may.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MCP_", "OTEL_"))}
    kept["MCP_RATE_LIMIT_BURST"] = "1000000"
    return kept | ({"PYTHONPATH": str(source)} if source else {}) | dict(settings or {})


class Server:
    """One server process. `log`: its parsed stderr so far; a line that is not JSON fails the test that reads it."""

    def __init__(
        self,
        *arguments: str,
        source: Path | None = None,
        settings: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", PACKAGE, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(source, settings),
            cwd=folder,
        )
        self.lines: queue.Queue[bytes] = queue.Queue()
        self.stderr: list[bytes] = []
        self._grown = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read_stdout, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._read_stderr, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.finish()

    @property
    def log(self) -> list[Json]:
        """Every event on stderr."""
        return [json.loads(line) for line in list(self.stderr)]

    @property
    def url(self) -> str:
        """Where it listens for MCP over HTTP."""
        return str(self.wait_for("listening")["url"])

    def wait_for(self, event: str, **fields: object) -> Json:
        """The first event with these fields."""

        def found() -> Json | None:
            return next((e for e in self.log if e["event"] == event and fields.items() <= e.items()), None)

        with self._grown:
            assert self._grown.wait_for(lambda: found() or self.process.poll() is not None, PATIENCE), self.log
        seen = found()
        assert seen is not None, self.log
        return seen

    def send(self, message: Json | bytes) -> None:
        """Write one line."""
        assert self.process.stdin is not None
        self.process.stdin.write((message if isinstance(message, bytes) else json.dumps(message).encode()) + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Json:
        """Read one line."""
        found: Json = json.loads(self.lines.get(timeout=PATIENCE))
        return found

    def finish(self) -> tuple[int, list[bytes]]:
        """Close the input and wait for the end: the exit code, and what was left on stdout, to the end of file."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        left = []
        while not self.lines.empty():
            left.append(self.lines.get())
        return code, left

    def _read_stdout(self, stream: IO[bytes]) -> None:
        for line in stream:
            self.lines.put(line)

    def _read_stderr(self, stream: IO[bytes]) -> None:
        for line in stream:
            with self._grown:
                self.stderr.append(line)
                self._grown.notify_all()
        with self._grown:
            self._grown.notify_all()


class Peer:
    """A raw client of one server, in one era."""

    def __init__(self, way: Way, server: Server) -> None:
        self.way, self.server = way, server
        self._next = 0
        if way.transport == "http":
            self.url = server.url
            self.http = httpx2.Client(timeout=PATIENCE, trust_env=False)
        elif way.version == LEGACY:
            hello = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
            assert self.request("initialize", hello)["result"]["protocolVersion"] == LEGACY
            server.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def message(self, method: str, params: Json | None = None) -> Json:
        """A request of this era with a new id."""
        self._next += 1
        params = dict(params or {})
        if self.way.version == MODERN:
            params["_meta"] = ENVELOPE | params.get("_meta", {})
        return {"jsonrpc": "2.0", "id": self._next, "method": method, "params": params}

    def request(self, method: str, params: Json | None = None) -> Json:
        """The answer to one request; notifications before it are dropped."""
        message = self.message(method, params)
        if self.way.transport == "http":
            return answer_of(self.post(message))
        self.server.send(message)
        while (answer := self.server.receive()).get("id") != message["id"]:
            assert "method" in answer, answer
        return answer

    def call(self, tool: str, /, **arguments: object) -> Json:
        """The answer to one `tools/call`."""
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def error(self, tool: str, /, **arguments: object) -> Json:
        """The error that a tool call ended in."""
        result = self.call(tool, **arguments)["result"]
        assert result["isError"] is True, result
        error: Json = result["_meta"][ERROR]
        assert result["content"] == [{"type": "text", "text": error["message"]}]
        return error

    def post(self, body: Json | bytes, headers: Mapping[str, str] | None = None) -> httpx2.Response:
        """One POST, with the headers that the era asks for."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(self.url, content=content, headers=self.headers(body) | dict(headers or {}))

    def headers(self, body: Json | bytes) -> dict[str, str]:
        """The headers of a request with this body."""
        sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        sent["MCP-Protocol-Version"] = self.way.version
        if isinstance(body, dict) and self.way.version == MODERN:
            sent["Mcp-Method"] = body["method"]
            if name := body["params"].get("name") or body["params"].get("uri"):
                sent["Mcp-Name"] = name
        return sent

    def logged(self, request_id: str) -> Json:
        """The log line of one request."""
        return self.server.wait_for("request", request_id=request_id)


def extended(source: Path, folder: Path, code: str) -> Path:
    """A copy of the source, below `folder`, with more code in one of its modules of tools."""
    copy = folder / "source"
    shutil.copytree(source, copy)
    with (copy / PACKAGE / "tools" / "serving.py").open("a", encoding="utf-8") as file:
        file.write(code)
    return copy


def until(is_so: Callable[[], object]) -> None:
    """Wait for what no event tells."""
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def answer_of(response: httpx2.Response) -> Json:
    """The JSON-RPC answer in an HTTP response, whether plain or the last event of a stream."""
    text = response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        text = [line for line in text.splitlines() if line.startswith("data: {")][-1].removeprefix("data: ")
    found: Json = json.loads(text)
    return found


def rest_of(connection: socket.socket) -> bytes:
    """What comes on a connection until the other side closes it."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def run_lines(
    messages: Iterable[Json | bytes], *, source: Path | None = None, settings: Mapping[str, str] | None = None
) -> tuple[int, list[bytes], list[bytes]]:
    """A stdio server that is sent everything and then the end of input: exit code, stdout and stderr, each whole."""
    sent = b"".join((m if isinstance(m, bytes) else json.dumps(m).encode()) + b"\n" for m in messages)
    done = subprocess.run(
        [sys.executable, "-m", PACKAGE],
        input=sent,
        capture_output=True,
        env=environment(source, settings),
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def run_command(
    *arguments: str, source: Path | None = None, settings: Mapping[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """One command of the command line, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", PACKAGE, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(source, settings),
        cwd=folder,
        timeout=PATIENCE,
        check=False,
    )
