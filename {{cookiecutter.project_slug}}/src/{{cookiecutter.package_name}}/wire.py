"""The process's standard streams, claimed before anything else can use them.

On stdio the protocol owns stdin and stdout, and every line on stderr is a log event. So the real descriptors move to
private numbers, and what others write to 1 and 2 (a `print`, a C library, a child process) runs into two pipes, whose
lines become log events. Standard library only: this is imported before the log is configured, and reports for it.
"""

import atexit
import json
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from time import monotonic
from traceback import extract_tb
from types import TracebackType
from typing import Any, NoReturn, TextIO

LONGEST_TEXT = 8192  # characters of one text that the log shows
_LONGEST_LINE = 4 * LONGEST_TEXT  # bytes kept of a line of stray output: the log looks further than it shows
_MOST_NOISE = 1000  # lines of it in a second; what is printed beyond that is counted
_MOST_UNSENT = 1 << 20  # bytes of log that its reader has not taken yet


class Wire:
    """The claimed streams: `stdin`, `stdout` and `stderr` are private descriptors of the real ones."""

    def __init__(self) -> None:
        for number in (0, 1, 2):  # a closed one would be handed out to the next file opened
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
        self.stdin, self.stdout, self.stderr = os.dup(0), os.dup(1), os.dup(2)
        self.report: Callable[[str, str, dict[str, Any]], None] = self._report
        """`(level, event, fields)`: where stray output and crashes go; the log takes it over once configured."""
        self._lock = threading.Lock()
        self._unsent = bytearray()
        self._dropped = 0
        self._flusher: threading.Thread | None = None
        self._gathering: int | None = None
        self._is_due = False
        self._later: Callable[[Callable[[], None]], object] = lambda send: send()
        sys.excepthook = lambda *failure: self._crash(*failure, is_fatal=True)
        sys.unraisablehook = lambda failure: self._crash(failure.exc_type, failure.exc_value, failure.exc_traceback)
        threading.excepthook = lambda failure: self._crash(
            failure.exc_type, failure.exc_value, failure.exc_traceback, thread=getattr(failure.thread, "name", None)
        )
        self._pumps = [self._divert(1, "stdout_noise"), self._divert(2, "stderr_noise")]
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        # New objects, as the old ones may take the pipe for the file or terminal that they were opened on.
        out, err = _text(1), _text(2)
        vars(sys).update(stdout=out, __stdout__=out, stderr=err, __stderr__=err)
        atexit.register(self.close)  # first registered runs last: after every other exit handler has printed

    def write_log(self, line: bytes) -> None:
        """Write one line to the real stderr, whole, and never wait for it.

        What a slow reader has not taken yet is kept, up to a limit; beyond it lines are dropped, and counted in an event
        of their own.
        """
        with self._lock:
            if len(self._unsent) > _MOST_UNSENT:
                self._dropped += 1
                return
            self._unsent += self._report_dropped() + line + b"\n"
            if threading.get_ident() != self._gathering:
                self._send()
            elif not self._is_due:
                self._is_due = True
                self._later(self._send_gathered)

    @contextmanager
    def gathering(self, later: Callable[[Callable[[], None]], object]) -> Iterator[None]:
        """Inside, this thread's lines leave a few at a time, when `later` runs what it is given."""
        self._later, self._gathering = later, threading.get_ident()
        try:
            yield
        finally:
            self._gathering = None

    def write_output(self, text: str) -> None:
        """Write a command's result to the real stdout.

        Raises:
            OSError: it cannot be written; nothing is raised when the reader has read enough and gone.
        """
        view = memoryview(text.encode())
        with suppress(BrokenPipeError):
            while view:
                view = view[os.write(self.stdout, view) :]

    def close(self) -> None:
        """Log what is still in buffers and pipes. Safe to call twice."""
        pumps, self._pumps = self._pumps, []
        if not pumps:
            return
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            if stream is not None and not stream.closed:  # somebody may have replaced or closed them
                stream.flush()
        _flush_c()
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(null, number)
        for pump in pumps:
            pump.join(0.5)  # bounded: a child process that outlives us may hold the other end
        with self._lock:
            self._unsent += self._report_dropped()
            until = monotonic() + 1
            while self._unsent and monotonic() < until and self._has_room(1):
                self._send()

    def exit(self, code: int) -> NoReturn:
        """End the process, and do not wait for threads that a cancelled blocking tool still occupies."""
        if threading.active_count() <= 1 + len(self._pumps):
            sys.exit(code)
        self.leave(code)

    def leave(self, code: int) -> NoReturn:
        """End the process now, with what its exit handlers do and nothing else."""
        atexit._run_exitfuncs()  # os._exit skips them, and `close` is one
        os._exit(code)

    def _report_dropped(self) -> bytes:
        count, self._dropped = self._dropped, 0
        return self._line("warning", "log_lines_dropped", {"count": count}) + b"\n" if count else b""

    def _send_gathered(self) -> None:
        with self._lock:
            self._is_due = False
            self._send()

    def _send(self) -> None:
        """Write what is unsent, as far as the reader takes it; the rest follows from a thread."""
        while self._unsent and self._has_room(0):
            try:
                # A pipe with room has room for 4096 bytes (PIPE_BUF on Linux): more could block.
                sent = os.write(self.stderr, self._unsent[:4096])
            except BlockingIOError:
                break
            except OSError:
                sent = len(self._unsent)  # the reader has gone
            del self._unsent[:sent]
        if self._unsent and self._flusher is None:
            self._flusher = threading.Thread(target=self._flush, name="log", daemon=True)
            self._flusher.start()

    def _flush(self) -> None:
        while True:
            self._has_room(1)
            with self._lock:
                self._send()
                if not self._unsent:
                    self._flusher = None
                    return

    def _has_room(self, seconds: float) -> bool:
        """Whether a pipe takes a block without blocking; Windows cannot tell."""
        return sys.platform == "win32" or bool(select.select([], [self.stderr], [], seconds)[1])

    def _divert(self, number: int, event: str) -> threading.Thread:
        source, target = os.pipe()
        os.dup2(target, number)
        os.close(target)
        if sys.platform == "win32":  # children are given handles, not numbers
            import ctypes
            import msvcrt

            ctypes.windll.kernel32.SetStdHandle(-10 - number, msvcrt.get_osfhandle(number))
        pump = threading.Thread(target=self._pump, args=(source, event), name=event, daemon=True)
        pump.start()
        return pump

    def _pump(self, source: int, event: str) -> None:
        rest, began, left = b"", monotonic(), _MOST_NOISE
        while chunk := os.read(source, 65536):
            if monotonic() - began >= 1:
                began, left = monotonic(), _MOST_NOISE
            first, *more = chunk.split(b"\n")
            rest += first[: _LONGEST_LINE - len(rest)]
            for line in more[:left]:
                self._noise(event, rest)
                rest = line[:_LONGEST_LINE]
            if dropped := len(more[left:]):
                rest = more[-1][:_LONGEST_LINE]
                self.report("warning", f"{event}_dropped", {"count": dropped})
            left -= len(more) - dropped
        self._noise(event, rest)

    def _noise(self, event: str, line: bytes) -> None:
        if text := line.decode("utf-8", "replace").strip():
            self.report("warning", event, {"line": text})

    def _report(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.write_log(self._line(level, event, fields))

    @staticmethod
    def _line(level: str, event: str, fields: dict[str, Any]) -> bytes:
        head = {"timestamp": datetime.now(UTC).isoformat(), "level": level, "event": event}
        return json.dumps(head | fields).encode()

    def _crash(
        self,
        kind: type[BaseException],
        failure: BaseException | None,
        trace: TracebackType | None,
        *,
        is_fatal: bool = False,
        **fields: Any,
    ) -> None:
        if kind is not KeyboardInterrupt:
            shown = describe(failure or kind(), trace, is_fatal=is_fatal)
            self.report("critical", "crash", fields | {"exception": shown})


def describe(
    failure: BaseException, trace: TracebackType | None = None, *, is_fatal: bool = False, depth: int = 4
) -> dict[str, Any]:
    """An exception as the log shows it: its type, where it came from and its causes.

    Never its text or local variables, which carry arguments and secrets; only a failed import that
    ends the process (`is_fatal`), and so was no caller's, keeps its text.
    """
    found = extract_tb(trace or failure.__traceback__)
    shown: dict[str, Any] = {
        "type": f"{type(failure).__module__}.{type(failure).__qualname__}".removeprefix("builtins."),
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in found[-12:]],
    }
    if is_fatal and isinstance(failure, ImportError):
        shown["text"] = str(failure)
    if isinstance(failure, BaseExceptionGroup) and depth:
        shown["exceptions"] = [describe(each, is_fatal=is_fatal, depth=depth - 1) for each in failure.exceptions[:8]]
    cause = failure.__cause__ or (None if failure.__suppress_context__ else failure.__context__)
    if cause is not None and depth:
        shown["cause"] = describe(cause, is_fatal=is_fatal, depth=depth - 1)
    return shown


def _text(number: int) -> TextIO:
    return open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _flush_c() -> None:
    """Flush C's own buffers: libc would do so only after Python has ended, when the pipes are gone."""
    if sys.platform != "win32":
        import ctypes

        ctypes.CDLL(None).fflush(None)


_claimed: list[Wire] = []


def claim() -> Wire:
    """Claim the process's standard streams, once; later calls return the same claim."""
    if not _claimed:
        _claimed.append(Wire())
    return _claimed[0]
