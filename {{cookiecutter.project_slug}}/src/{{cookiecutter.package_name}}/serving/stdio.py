"""MCP over the process's pipe: one JSON-RPC message a line (specification, transports/stdio).

The SDK's own transport reads and writes in the thread pool that blocking tools share, ignores a line that is no
message, and drops the calls in flight at the end of input.
"""

import errno
import os
import stat
import sys
from collections import Counter, deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
import mcp_types as types
import structlog
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from ..sdk import NOT_A_MESSAGE, complete_error
from ..server import Application
from ..wire import Wire
from .signals import on_signals
from .watchdog import Watchdog

_DRAIN_SECONDS = 1.5  # clients wait 2 s after closing stdin, then kill
_CUT_SECONDS = 0.2  # for the answers of the calls that were cut
_STOP_SECONDS = 1.9  # for all of it, cleanup too; then the process is ended


async def serve(app: Application, wire: Wire, end: Callable[[], None]) -> int:
    """Serve until the input ends or a signal comes; returns the exit code, 1 if a call had to be cut.

    Args:
        end: ends the process at once, if it does not stop by itself.

    Raises:
        StartError: a dependency cannot be opened.
    """
    writer, watchdog = _Writer(wire.stdout), Watchdog(app.registry.code, end)
    reader = _Reader(wire.stdin, writer, app, lambda: watchdog.give(_STOP_SECONDS))
    with watchdog.watch(), on_signals(lambda: watchdog.give(_STOP_SECONDS), reader.end):
        async with app.open():
            await app.mcp.run(reader, writer, app.mcp.create_initialization_options())
    lost, log = writer.waiting.total(), structlog.get_logger()
    (log.error if lost else log.info)("stopped", transport="stdio", cut_calls=reader.cut, lost_calls=lost)
    return 1 if reader.cut or lost else 0


class _Closing:
    """The parts of the SDK's stream protocols that need nothing here: the descriptors live as long as the process."""

    async def aclose(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _Writer(_Closing):
    """Whole lines out, one at a time, without blocking the loop. `waiting`: ids read and not yet answered."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pollable = _make_pollable(descriptor)
        self._lock = anyio.Lock()
        self._progress = anyio.Event()
        self.waiting: Counter[types.RequestId] = Counter()  # a client may use an id twice, and is owed both answers

    async def send(self, item: SessionMessage) -> None:
        """Write one message."""
        message = item.message
        if isinstance(message, types.JSONRPCError):
            await self.refuse(message.id, message.error.code, message.error.message, message.error.data)
            return
        await self._write(message.model_dump_json(by_alias=True, exclude_unset=True).encode())
        if isinstance(message, types.JSONRPCResponse):
            self.settle(message.id)

    async def refuse(self, rpc_id: types.RequestId | None, code: int, text: str, data: Any = None) -> None:
        """Answer with a JSON-RPC error."""
        error = complete_error(code, text, data, "stdio", rpc_id)
        await self._write(to_json({"jsonrpc": "2.0", "id": rpc_id, "error": error}))
        self.settle(rpc_id)

    def settle(self, rpc_id: object) -> None:
        """A request is answered, or needs no answer any more."""
        if isinstance(rpc_id, str | int) and self.waiting[rpc_id] > 0:
            self.waiting[rpc_id] -= 1
        self._progress.set()
        self._progress = anyio.Event()

    async def drained(self) -> None:
        """Wait until everything is answered."""
        while self.waiting.total():
            await self._progress.wait()

    async def _write(self, line: bytes) -> None:
        view = memoryview(line + b"\n")
        async with self._lock:
            # Shielded: half a message on the wire would spoil every message after it.
            with anyio.CancelScope(shield=True):
                while view:
                    try:
                        view = view[os.write(self._descriptor, view) :]
                    except BlockingIOError:
                        await anyio.wait_writable(self._descriptor)
                    except OSError as error:
                        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                            raise
                        return  # the client has gone, and the end of input says so too


class _Reader(_Closing):
    """Messages in. What is no message is answered here, as the SDK would drop it without a word."""

    def __init__(self, descriptor: int, writer: _Writer, app: Application, at_end: Callable[[], None]) -> None:
        """`at_end` is told when the input has ended."""
        self._descriptor = descriptor
        self._pollable = _make_pollable(descriptor)
        self._writer = writer
        self._longest = app.settings.max_request_bytes
        self._drain = app.drain
        self._tell_end = at_end
        self._lines: deque[bytes] = deque()
        self._rest = bytearray()
        self._skipping = False
        self._at_end = False
        self._reading, self._draining = anyio.CancelScope(), anyio.CancelScope()
        self.cut = 0

    def end(self) -> None:
        """Read no more, as at the end of input; the second time, wait for no call any more."""
        if self._at_end:
            self._draining.cancel()
        self._at_end = True
        self._reading.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def receive(self) -> SessionMessage | Exception:
        """The next message.

        Raises:
            anyio.EndOfStream: the input has ended and what was read is answered, or its time is up.
        """
        while True:
            while self._lines:
                if (message := await self._parse(self._lines.popleft())) is not None:
                    return message
            if self._at_end:
                self._tell_end()
                self._drain.begin()
                self._draining.deadline = anyio.current_time() + _DRAIN_SECONDS
                with self._draining:
                    await self._writer.drained()
                self.cut = self._drain.cut()
                with anyio.move_on_after(_CUT_SECONDS):
                    await self._writer.drained()
                raise anyio.EndOfStream
            await self._fill()

    async def _fill(self) -> None:
        chunk = b""
        with anyio.CancelScope() as self._reading:
            chunk = await self._read()
        if not chunk:
            if not self._at_end and self._rest:  # the last line lacks its end
                self._lines.append(bytes(self._rest))
            self._at_end = True
            return
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            whole = bytes(self._rest) + line
            self._rest.clear()
            if not self._skipping:
                self._lines.append(whole)
            self._skipping = False
        if not self._skipping:
            self._rest += rest
        if len(self._rest) > self._longest:
            self._rest.clear()
            self._skipping = True
            self._lines.append(b" " * (self._longest + 1))

    async def _read(self) -> bytes:
        if not self._pollable:  # a file, a terminal, Windows
            return await anyio.to_thread.run_sync(os.read, self._descriptor, 65536, abandon_on_cancel=True)
        while True:
            try:
                return os.read(self._descriptor, 65536)
            except BlockingIOError:
                await anyio.wait_readable(self._descriptor)
            except ConnectionResetError:
                return b""

    async def _parse(self, line: bytes) -> SessionMessage | None:
        if len(line) > self._longest:
            await self._writer.refuse(None, INVALID_REQUEST, f"A message is at most {self._longest} bytes long.")
            return None
        if not line.strip():
            return None
        try:
            message = types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except ValidationError as error:
            await self._refuse(line, is_json=error.errors(include_input=False)[0]["type"] != "json_invalid")
            return None
        if isinstance(message, types.JSONRPCRequest):
            self._writer.waiting[message.id] += 1
        elif isinstance(message, types.JSONRPCNotification):
            if b'"id"' in line and "id" in from_json(line):  # a request whose id is no id, and is owed an answer
                await self._refuse(line, is_json=True)
                return None
            if message.method == "notifications/cancelled":
                self._writer.settle((message.params or {}).get("requestId"))
        return SessionMessage(message)

    async def _refuse(self, line: bytes, *, is_json: bool) -> None:
        if not is_json:
            await self._writer.refuse(None, PARSE_ERROR, "")
            return
        found = from_json(line)
        rpc_id = found.get("id") if isinstance(found, dict) else None
        if isinstance(rpc_id, bool) or not isinstance(rpc_id, str | int):
            rpc_id = None
        await self._writer.refuse(rpc_id, INVALID_REQUEST, NOT_A_MESSAGE)


def _make_pollable(descriptor: int) -> bool:
    """Make a pipe or socket non-blocking; nothing else can be polled, and a terminal is shared with the shell."""
    if sys.platform == "win32":
        return False
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    os.set_blocking(descriptor, False)
    return True
