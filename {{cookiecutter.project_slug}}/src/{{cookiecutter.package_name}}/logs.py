"""Structured logs on stderr: one JSON object per line, from every source, with nothing secret in them.

The package's own events, the standard library's `logging` (uvicorn, asyncio, the SDK), warnings, crashes and stray
output pass the same processors: request id, redaction, exceptions without text or local variables, one renderer.
"""

import logging
import os
import re
import sys
from collections.abc import Iterable, MutableMapping
from contextvars import ContextVar
from typing import Any

import structlog
from pydantic_core import to_json

from .wire import Wire, describe

current_request: ContextVar[dict[str, Any]] = ContextVar("current_request", default={})  # noqa: B039 - never changed
"""What every event of the request being served carries: its `request_id` and tool."""

Event = MutableMapping[str, Any]

_HIDDEN = "[redacted]"
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
    redact = Redaction(secrets)
    finish: list[Any] = [_add_request, _hide_exceptions, redact, render]
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(
        processors=[structlog.processors.add_log_level, stamp, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _WireLogger(wire),
        cache_logger_on_first_use=False,
    )

    handler = _WireHandler(wire)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, stamp],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish, _as_text],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelName(level), logging.INFO))
    # The SDK logs Host and Origin headers as warnings, uvicorn its own start and stop: the request log has what matters.
    logging.getLogger("mcp").setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.captureWarnings(True)

    own = structlog.get_logger()

    def report(level: str, event: str, fields: dict[str, Any]) -> None:
        getattr(own, level)(event, **fields)

    wire.report = report


class Redaction:
    """Hides secrets by the name of their field, by their shape, and by their value."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        values = sorted(filter(None, secrets), key=len, reverse=True)
        self._values = re.compile("|".join(map(re.escape, values))) if values else None

    def __call__(self, logger: object, method: str, event: Event) -> Event:
        """A structlog processor."""
        for key, value in event.items():
            if _SECRET_KEY.search(key):
                event[key] = _HIDDEN
            elif isinstance(value, str | dict | list | tuple):
                event[key] = self.clean(value)
        return event

    def clean(self, value: Any) -> Any:
        """`value` with what is secret in it replaced."""
        if isinstance(value, str):
            if self._values is not None:
                value = self._values.sub(_HIDDEN, value)
            return hide_shapes(value)
        if isinstance(value, dict):
            return {k: _HIDDEN if _SECRET_KEY.search(str(k)) else self.clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.clean(item) for item in value]
        return value


def hide_shapes(text: str) -> str:
    """Hide what looks like a credential: header values, JWTs, user, password, query and fragment of a URL."""
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
        self._wire.write_log(self.format(record).encode())

    def handleError(self, record: logging.LogRecord) -> None:
        """Report the call that could not be formatted, and not its arguments, as the base class would."""
        self._wire.report("error", "unloggable", {"logger": record.name, "line": record.lineno})


def _add_request(logger: object, method: str, event: Event) -> Event:
    return {**current_request.get(), **event}


def _hide_exceptions(logger: object, method: str, event: Event) -> Event:
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


def _render_json(logger: object, method: str, event: Event) -> bytes:
    head = {"timestamp": event.pop("timestamp"), "level": event.pop("level"), "event": event.pop("event")}
    return to_json({**head, **event}, fallback=_name_type, inf_nan_mode="strings")


def _as_text(logger: object, method: str, line: Any) -> str:
    return str(line, "utf-8")  # the standard library's formatters deal in text


def _name_type(value: object) -> str:
    """An object of unknown content is logged as its type."""
    return f"<{type(value).__qualname__}>"


def _console_renderer(wire: Wire) -> Any:
    from structlog.dev import ConsoleRenderer

    renderer = ConsoleRenderer(colors=os.isatty(wire.stderr), exception_formatter=lambda *_: None)
    return lambda logger, method, event: str(renderer(logger, method, dict(event))).encode()
