"""A server process, and raw messages to talk to it: a client library would hide faults. Standard library only."""

import json
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self
from urllib.parse import urlsplit

from bootstrap import server_environment

MODERN, LEGACY = "2026-07-28", "2025-11-25"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
HELLO = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "raw", "version": "0"}}
INITIALIZED: dict[str, Any] = {"jsonrpc": "2.0", "method": "notifications/initialized"}
SERVE_HTTP = ("serve", "--transport", "http", "--port", "0")
PATIENCE = 60  # seconds; a start takes two on a busy machine, and twenty on a crowded one

Json = dict[str, Any]


class Server:
    """One server process. `stderr`: its lines so far; `lines`: those of stdout, None at the end."""

    def __init__(
        self,
        command: Sequence[str | Path],
        settings: Mapping[str, str] | None = None,
        *,
        stdin: int = subprocess.PIPE,
        patience: float = PATIENCE,
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=server_environment(settings or {}),
        )
        self._patience = patience
        self.lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.stderr: list[bytes] = []
        self._grown = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines.put), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self._log), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    @property
    def port(self) -> int:
        """Where it listens for HTTP."""
        found = urlsplit(self.wait_for("listening")[0]["url"]).port
        assert found is not None
        return found

    def events(self) -> list[Json]:
        """What it has logged."""
        return [json.loads(line) for line in list(self.stderr)]

    def wait_for(self, event: str, count: int = 1, **fields: object) -> list[Json]:
        """The first so many events with these fields."""

        def found() -> list[Json]:
            return [e for e in self.events() if e["event"] == event and fields.items() <= e.items()][:count]

        with self._grown:
            self._grown.wait_for(lambda: len(found()) == count or self.process.poll() is not None, self._patience)
        seen = found()
        assert len(seen) == count, self.stderr[-20:]
        return seen

    def send(self, *messages: Json | bytes) -> None:
        """Write messages in one go, a line each."""
        assert self.process.stdin is not None
        lines = (m if isinstance(m, bytes) else json.dumps(m).encode() for m in messages)
        self.process.stdin.write(b"".join(line + b"\n" for line in lines))
        self.process.stdin.flush()

    def receive(self) -> bytes:
        """Read one line of stdout."""
        line = self.lines.get(timeout=self._patience)
        assert line is not None, self.stderr[-20:]
        return line

    def finish(self) -> tuple[int, list[bytes]]:
        """Close its input and wait for the end; returns the exit code, and what was left on stdout."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.wait()
        return code, list(iter(self.lines.get_nowait, None))

    def wait(self) -> int:
        """Wait for the end, of its output too; returns the exit code."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code

    def _log(self, line: bytes | None) -> None:
        with self._grown:
            if line is not None:
                self.stderr.append(line)
            self._grown.notify_all()

    @staticmethod
    def _read(stream: IO[bytes], keep: Callable[[bytes | None], None]) -> None:
        for line in stream:
            keep(line)
        keep(None)


class Forgetful(Server):
    """A server whose log is read, and not kept once `forgets` is set."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.forgets = threading.Event()
        super().__init__(*given, **named)

    def _log(self, line: bytes | None) -> None:
        if line is None or not self.forgets.is_set():
            super()._log(line)


Start = Callable[..., Server]
"""Starts a server that is ended with the test (`tests/edge/conftest.py`)."""


def resident(pid: int) -> int:
    """The memory of a process, in KiB. Linux."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


class Response(NamedTuple):
    """One HTTP response; names of headers are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def messages(self) -> list[Any]:
        """The JSON in it: the whole body, or the events of a stream."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return [json.loads(self.body, parse_constant=_refuse)]
        lines = [line for line in self.body.decode().splitlines() if line.startswith("data: {")]
        return [json.loads(line.removeprefix("data: "), parse_constant=_refuse) for line in lines]


class Connection:
    """One connection to a server on this machine."""

    def __init__(self, port: int, patience: float = PATIENCE, address: str = "127.0.0.1") -> None:
        """`address`: of this machine, that it comes from."""
        self.socket = socket.create_connection(("127.0.0.1", port), patience, (address, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def end(self) -> None:
        """Send no more."""
        with suppress(OSError):  # the server may have closed it
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Leave."""
        self._stream.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Write it all."""
        self.socket.sendall(data)

    def receive(self, method: str = "POST") -> Response | None:
        """Read one response to its end; None when the connection ends before its first byte.

        Raises:
            EOFError: it ends in the middle.
        """
        status = 100
        while status == 100:  # "continue" comes before the response proper
            line = self._stream.readline()
            if not line:
                return None
            status = int(line.split(None, 2)[1])
            headers = {}
            while (line := self._line()) != b"\r\n":
                name, _, value = line.partition(b":")
                headers[name.decode().lower()] = value.strip().decode()
        body = b"" if method == "HEAD" or status in (204, 304) else self._body(headers)
        return Response(status, headers, body)

    def ask(self, sent: bytes) -> Response:
        """Send one request and read its response.

        Raises:
            EOFError: there is none, or not all of it.
        """
        self.send(sent)
        response = self.receive()
        if response is None:
            raise EOFError
        return response

    def shake_hands(self) -> dict[str, str]:
        """Begin as a legacy client does; returns the header of the session, where there are sessions."""
        hello = message(LEGACY, "hello", "initialize", HELLO)
        given = self.ask(post(headers_of(hello, LEGACY), hello)).headers
        session = {name: value for name, value in given.items() if name == "mcp-session-id"}
        assert self.ask(post(headers_of(INITIALIZED, LEGACY) | session, INITIALIZED)).status == 202
        return session

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return self._exactly(int(headers.get("content-length", 0)))
        parts = []
        while size := int(self._line(), 16):
            parts.append(self._exactly(size))
            self._exactly(2)
        self._line()
        return b"".join(parts)

    def _line(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line

    def _exactly(self, size: int) -> bytes:
        found = self._stream.read(size)
        if len(found) < size:
            raise EOFError
        return found


def message(era: str, rpc_id: int | str, method: str, params: Json | None = None) -> Json:
    """A request of this era."""
    params = dict(params or {})
    if era == MODERN:
        params["_meta"] = ENVELOPE
    return {"jsonrpc": "2.0", "id": rpc_id, "method": method, "params": params}


def headers_of(body: Any, era: str) -> dict[str, str]:
    """The headers that go with a message: the modern era repeats its method and name there."""
    headers = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": era,
    }
    if era == MODERN:
        headers["Mcp-Method"] = body["method"]
        if name := body["params"].get("name") or body["params"].get("uri"):
            headers["Mcp-Name"] = name
    return headers


def post(headers: Mapping[str, str], body: Json | bytes, method: str = "POST") -> bytes:
    """The bytes of one HTTP request."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {**headers, "Content-Length": str(len(content))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} /mcp HTTP/1.1\r\n{head}\r\n".encode("utf-8", "surrogatepass") + content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
