"""Structured logs on stderr: one JSON object per line, from every source, with nothing secret in them.

The package's own events, the standard library's `logging` (uvicorn, asyncio, the SDK), warnings, crashes and stray
output pass the same processors: request id, redaction, exceptions without text or local variables, one renderer.
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
from typing import Any

import structlog
from pydantic_core import to_json, to_jsonable_python

from .errors import Level
from .wire import Wire, describe

current_request: ContextVar[dict[str, Any]] = ContextVar("current_request", default={})  # noqa: B039 - never changed
"""What every event of the request being served carries: its `request_id`, and its `trace_id` if there is one."""

Event = MutableMapping[str, Any]

_HIDDEN = "[redacted]"
_LONGEST_WORD = 32  # characters
_PLAIN = (int, float, bool)
_SECRET_KEY = re.compile(r"authorization|cookie|passw|secret|token|credential|api_?key|private_?key", re.IGNORECASE)
_SECRET_TEXTS = (
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {_HIDDEN}"),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), _HIDDEN),  # a JWT
    (re.compile(r"://[^/\s@]+@"), f"://{_HIDDEN}@"),  # user and password of a URL
    (re.compile(r"(\b[a-z][\w+.-]*://[^\s?#\"']*)[?#][^\s\"']*", re.IGNORECASE), rf"\1?{_HIDDEN}"),  # its query
)


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
        self._name = lru_cache(maxsize=256)(self._clean_name)  # the fields of events are few, and come again
        self._word = lru_cache(maxsize=256)(self._clean_text)  # and so do most of their values

    def add(self, shown: Event, fields: Event) -> None:
        """Put fields into an event that is shown: most are short words and numbers."""
        for key, value in fields.items():
            name, is_secret = self._name(key)
            if is_secret:
                value = _HIDDEN
            elif type(value) is str and len(value) <= _LONGEST_WORD:
                value = self._word(value)
            elif value is not None and type(value) not in _PLAIN:
                value = self.clean(value)
            shown[name] = value

    def clean(self, value: Any) -> Any:
        """`value` as JSON data, with what is secret in it replaced."""
        if isinstance(value, str):
            return self._clean_text(value)
        if value is None or isinstance(value, int | float):
            return value
        if isinstance(value, bytes):
            return self.clean(value.decode("utf-8", "replace"))
        if isinstance(value, dict):
            return dict(self._field(key, item) for key, item in value.items())
        if isinstance(value, list | tuple | set | frozenset):
            return [self.clean(item) for item in value]
        return self.clean(to_jsonable_python(value, fallback=_name_type))

    def _field(self, key: Any, item: Any) -> tuple[str, Any]:
        name, is_secret = self._name(key) if isinstance(key, str) else self._clean_name(str(self.clean(key)))
        return name, _HIDDEN if is_secret else self.clean(item)

    def _clean_text(self, text: str) -> str:
        return hide_shapes(text if self._values is None else self._values.sub(_HIDDEN, text))

    def _clean_name(self, key: str) -> tuple[str, bool]:
        name = self.clean(key)
        return name, _SECRET_KEY.search(name) is not None


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


def hide_shapes(text: str) -> str:
    """Hide what looks like a credential: header values, JWTs, user, password, query and fragment of a URL."""
    if " " in text or "://" in text or "eyJ" in text or not text.isprintable():  # none of the patterns does without
        for pattern, shown in _SECRET_TEXTS:
            text = pattern.sub(shown, text)
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
    return to_json(event, fallback=_name_type, inf_nan_mode="strings")


def _as_text(logger: object, method: str, line: Any) -> str:
    return str(line, "utf-8")  # the standard library's formatters deal in text


def _name_type(value: object) -> str:
    """An object of unknown content is logged as its type."""
    return f"<{type(value).__qualname__}>"


def _console_renderer(wire: Wire) -> Callable[[Event], bytes]:
    from structlog.dev import ConsoleRenderer

    renderer = ConsoleRenderer(colors=os.isatty(wire.stderr), exception_formatter=lambda *_: None)
    return lambda event: str(renderer(None, "", dict(event))).encode("utf-8", "replace")
