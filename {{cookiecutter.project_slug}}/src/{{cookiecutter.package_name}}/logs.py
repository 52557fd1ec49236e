"""Structured logs on stderr: one JSON object per line, from every source, with nothing secret in them.

The package's own events, the standard library's `logging` (uvicorn, asyncio, the SDK), warnings, crashes and stray
output pass the same processors: request id, redaction, exceptions without text or local variables, one renderer.

Much of what is logged was written by others. Each pattern takes time in proportion to the text it runs over, and all of
them run over so much of an event and no more.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Any

import structlog
from pydantic_core import to_json, to_jsonable_python

from .errors import Level
from .text import escaped
from .wire import LONGEST_TEXT, Wire, describe

current_request: ContextVar[dict[str, Any]] = ContextVar("current_request", default={})  # noqa: B039 - never changed
"""What every event of the request being served carries: its `request_id`, and its `trace_id` if there is one."""

Event = MutableMapping[str, Any]

_HIDDEN, _CUT = "[redacted]", "[cut]"
_LONGEST_WORD = 32  # characters
_LONGEST_NAME, _LONGEST_RPC_ID = 128, 64
_LARGEST_EVENT = 4 * LONGEST_TEXT  # characters, and values, of one event beside its short words and numbers
_SEEN_AHEAD = 64  # characters beyond a cut: more than a pattern needs to know what it has begun to match
_PLAIN = (int, float, bool)
_SECRET_KEY = re.compile(r"authorization|cookie|passw|secret|token|credential|api_?key|private_?key", re.IGNORECASE)
# None begins to match in the middle of what it has tried to match before: that would be quadratic.
_CREDENTIAL = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE)
_TOKEN = re.compile(r"(?<![^\W_])eyJ[\w-]{8,}[\w.-]*")  # JSON in base64, as a JWT begins
_USER = re.compile(r"://[^/\s]*@")  # and password of a URL
_OPEN_USER = re.compile(r"://[^/\s]*\Z")  # of one that was cut
_QUERY = re.compile(r"(://[^\s?#\"']*)([?#][^\s\"']*)?")


def configure(wire: Wire, *, level: str, form: str, secrets: Iterable[str] = ()) -> None:
    """Send every event through one pipeline to `wire`.

    Args:
        wire: the claimed streams.
        level: the least level of the package's own events. Other libraries are logged from INFO at most, since some
            of them log whole messages at DEBUG.
        form: `json`, `console`, or `auto` (console only on a terminal).
        secrets: values to hide wherever they appear.
    """
    console = form == "console" or (form == "auto" and os.isatty(wire.stderr))
    render = _console_renderer(wire) if console else _render_json
    finish = _Finish(Redaction(secrets), render)
    structlog.configure(
        processors=[finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _WireLogger(wire),
        cache_logger_on_first_use=False,
    )

    handler = _WireHandler(wire)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, finish, _as_text],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelName(level), logging.INFO))
    # Their warnings repeat what is in the request log: headers (the SDK), requests that are no HTTP (uvicorn).
    logging.getLogger("mcp").setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request
    logging.captureWarnings(True)

    own = structlog.get_logger()

    def report(level: str, event: str, fields: dict[str, Any]) -> None:
        getattr(own, level)(event, **fields)

    wire.report = report


class Events:
    """Writes events as `structlog.get_logger()` does, as it is configured when this is made.

    Its loggers copy an event four times on the way, which would cost a request's line more than all the rest.
    """

    def __init__(self) -> None:
        config, log = structlog.get_config(), structlog.get_logger()
        self._processors = config["processors"]
        self._target = config["logger_factory"]()
        self._levels = {level for level in _LEVELS if log.is_enabled_for(logging.getLevelName(level.upper()))}

    def write(self, level: Level, event: dict[str, Any]) -> None:
        """Write one; `event` is not to be used again."""
        if level in self._levels:
            for processor in self._processors:
                event = processor(None, level, event)
            getattr(self._target, level)(event)


_LEVELS: tuple[Level, ...] = ("info", "warning", "error")


class Redaction:
    """Hides secrets by the name of their field, by their shape, and by their value, a line at a time if it has many."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        lines = {line for secret in secrets for line in (secret, *secret.splitlines()) if len(line) >= 8}
        values = sorted(lines, key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, values))) if values else None
        self._ahead = max([_SEEN_AHEAD, *(2 * len(value) for value in values[:1])])
        self._names = lru_cache(maxsize=256)(self._clean_name)  # the fields of events are few, and come again
        self._word = lru_cache(maxsize=256)(self.hide)  # and so do most of their values

    def add(self, shown: Event, fields: Event) -> None:
        """Put fields into an event that is shown: most are short words and numbers."""
        rest = None
        for key, value in fields.items():
            name, is_secret = self._names(key) if len(key) <= _LONGEST_NAME else self._clean_name(key)
            if is_secret:
                value = _HIDDEN
            elif type(value) is str and len(value) <= _LONGEST_WORD:
                value = self._word(value)
            elif key == "rpc_id" and isinstance(value, str):
                value = self.hide(value, _LONGEST_RPC_ID)
            elif value is not None and type(value) not in _PLAIN:
                rest = rest or _Rest()
                value = self.clean(value, rest)
            shown[name] = value

    def clean(self, value: Any, rest: "_Rest | None" = None) -> Any:
        """`value` as JSON data, with what is secret in it replaced. `rest`: how much of it is still to be shown."""
        rest = rest or _Rest()
        if isinstance(value, str):
            return self.hide(value, rest.take(len(value)))
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, bytes):
            return self.clean(value[: 4 * _LARGEST_EVENT].decode("utf-8", "replace"), rest)
        if isinstance(value, dict):
            shown: dict[str, Any] = {}
            count = rest.take(len(value))
            for key, item in islice(value.items(), count):
                key = key if isinstance(key, str) else str(self.clean(key, rest))
                name, is_secret = self._names(key) if len(key) <= _LONGEST_NAME else self._clean_name(key)
                rest.take(len(name))
                shown[name] = _HIDDEN if is_secret else self.clean(item, rest)
            return shown if count == len(value) else shown | {_CUT: len(value) - count}
        if isinstance(value, list | tuple | set | frozenset):
            count = rest.take(len(value))
            items = [self.clean(item, rest) for item in islice(value, count)]
            return items if count == len(value) else [*items, _CUT]
        return self.clean(to_jsonable_python(value, fallback=_name_type), rest)

    def hide(self, text: str, longest: int = LONGEST_TEXT) -> str:
        """The first so many characters of a text, without secrets.

        It is cut before it is looked at, but a little further on: no secret is cut in two, and its first half shown.
        """
        if self._values is None and len(text) <= longest and text.isalnum() and "eyJ" not in text:
            return text  # none of the patterns fits
        is_long, is_cut = len(text) > longest, len(text) > longest + self._ahead
        if is_cut:
            text = text[: longest + self._ahead]
        if self._values is not None:
            text = self._values.sub(_HIDDEN, text)
        text = _hide_shapes(text, is_cut)
        if is_cut:
            text = text[: -self._ahead]
        return text[:longest] + _CUT if is_long else text

    def _clean_name(self, key: str) -> tuple[str, bool]:
        is_secret = len(key) > LONGEST_TEXT or _SECRET_KEY.search(key) is not None
        return self.hide(key, _LONGEST_NAME), is_secret


class _Rest:
    """How much more of an event is shown."""

    def __init__(self) -> None:
        self._left = _LARGEST_EVENT

    def take(self, count: int) -> int:
        """How many of so many are, of one text at most."""
        taken = min(count, LONGEST_TEXT, self._left)
        self._left -= taken
        return taken


class _Finish:
    """The end of both pipelines: time, level, the request's id, exceptions, redaction, and a line of bytes."""

    def __init__(self, redaction: Redaction, render: Callable[[Event], bytes]) -> None:
        self._redaction = redaction
        self._render = render

    def __call__(self, logger: object, method: str, event: Event) -> bytes:
        second, microsecond = divmod(time.time_ns() // 1000, 1_000_000)
        shown: dict[str, Any] = {"timestamp": f"{_second(second)}.{microsecond:06}Z"}
        shown["level"] = "error" if method == "exception" else method
        try:
            shown["event"] = self._redaction.clean(event.pop("event"))
            if request := current_request.get():
                shown |= request
            self._redaction.add(shown, _hide_exceptions(event))
            return self._render(shown)
        except Exception as error:  # noqa: BLE001 - what cannot be logged must not break the call that logs it
            head = {name: shown[name] for name in ("timestamp", "level")}
            return self._render({**head, "event": "unloggable", "exception": describe(error)})


@lru_cache(maxsize=1)
def _second(number: int) -> str:
    """`2026-01-31T12:00:00`: made once a second, as it takes as long as the rest of the line."""
    return datetime.fromtimestamp(number, UTC).isoformat()[:19]


_shapes = Redaction()


def hide_shapes(text: str, longest: int = LONGEST_TEXT) -> str:
    """The first so many characters of a text, without what looks like a credential: header values, JWTs, user, password,
    query and fragment of a URL."""
    return _shapes.hide(text, longest)


def _hide_shapes(text: str, is_cut: bool) -> str:
    if "://" in text:
        text = _USER.sub(f"://{_HIDDEN}@", text)
        if is_cut:
            text = _OPEN_USER.sub(f"://{_HIDDEN}", text)
        text = _QUERY.sub(lambda found: f"{found[1]}?{_HIDDEN}" if found[2] else found[0], text)
    if "eyJ" in text:
        text = _TOKEN.sub(_HIDDEN, text)
    lower = text.lower()
    if "bearer" in lower or "basic" in lower:
        text = _CREDENTIAL.sub(rf"\1 {_HIDDEN}", text)
    return text


class _WireLogger:
    """What structlog ends in: a finished line."""

    def __init__(self, wire: Wire) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = wire.write_log


class _WireHandler(logging.Handler):
    """The same for the standard library's records."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as the standard library's own handlers do
            self.handleError(record)
        else:
            self._wire.write_log(line.encode("utf-8", "replace"))

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the call that could not be formatted, and not its arguments, as the base class would."""
        self._wire.report("error", "unloggable", {"logger": record.name, "line": record.lineno})


def log_loop_error(loop: object, context: dict[str, Any]) -> None:
    """An asyncio exception handler; asyncio's own logs the exception's text."""
    structlog.get_logger().error("asyncio", problem=context["message"], exc_info=context.get("exception"))


def _hide_exceptions(event: Event) -> Event:
    """Replace `exc_info` by the exception's type, places and causes: its text may carry arguments and secrets."""
    failure = event.pop("exc_info", None)
    event.pop("stack_info", None)
    if failure is True or failure == 1:
        failure = sys.exc_info()
    if isinstance(failure, tuple):
        failure = failure[1]
    if isinstance(failure, BaseException):
        event["exception"] = describe(failure)
    return event


def _render_json(event: Event) -> bytes:
    line = to_json(event, fallback=_name_type, inf_nan_mode="strings")
    return line if line.isascii() and b"\x7f" not in line else escaped(line.decode()).encode()


def _as_text(logger: object, method: str, line: Any) -> str:
    return str(line, "utf-8")  # the standard library's formatters deal in text


def _name_type(value: object) -> str:
    """An object of unknown content is logged as its type."""
    return f"<{type(value).__qualname__}>"


def _console_renderer(wire: Wire) -> Callable[[Event], bytes]:
    from structlog.dev import ConsoleRenderer

    renderer = ConsoleRenderer(colors=os.isatty(wire.stderr), exception_formatter=lambda *_: None)

    def render(event: Event) -> bytes:
        shown = {escaped(name): escaped(value) if isinstance(value, str) else value for name, value in event.items()}
        return str(renderer(None, "", shown)).encode("utf-8", "replace")

    return render
