"""Spans of OpenTelemetry: one for each request, from the facts of its log line, and one for each attempt outward.

Names and attributes are those of its conventions for MCP and for HTTP clients, but for what a caller or a service has
sent: `mcp.resource.uri`, `mcp.session.id` (who knows it can use the session), `client.address`, `url.full`, and the
description of a status. The API makes them; without `tracing.py` there is nothing behind it.
"""

from collections.abc import Mapping
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, format_span_id, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from .calls import Call
from .errors import OK, Outcome
from .logs import hide_shapes
from .text import clean

if TYPE_CHECKING:
    import httpx2

FAULTS = frozenset(
    {
        *("internal", "unavailable", "overloaded", "timeout", "shutting_down", "result_too_large"),
        *("upstream_unavailable", "upstream_rejected"),
    }
)
"""Outcomes that are this server's own doing, or its services': spans that end so are errors. After the others it is for
the caller to act."""

current_tracer: ContextVar[Tracer | None] = ContextVar("current_tracer", default=None)
"""What makes spans; None: nobody wants them. Set once, before serving begins."""

_LONGEST_ID = 64  # characters
_W3C = TraceContextTextMapPropagator()


def begin_request(call: Call) -> Span | None:
    """A span for a request that begins, in its caller's trace if it names one."""
    if (tracer := current_tracer.get()) is None:
        return None
    name, target = call.method, call.target
    attributes: dict[str, str] = {
        "mcp.method.name": call.method,
        "mcp.protocol.version": call.protocol_version,
        "network.transport": "pipe" if call.transport == "stdio" else "tcp",
    }
    if call.transport == "http":
        attributes["network.protocol.name"] = "http"
    if (rpc_id := call.shown_rpc_id) is not None:
        attributes["jsonrpc.request.id"] = clean(hide_shapes(str(rpc_id), _LONGEST_ID))
    if target is not None and call.method == "tools/call":
        name = f"{name} {target.name}"
        attributes |= {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": target.name}
    elif target is not None and call.method == "prompts/get":
        name = f"{name} {target.name}"
        attributes["gen_ai.prompt.name"] = target.name
    context = Context()
    if call.parent is not None:
        context = _W3C.extract({name: value for name, value in call.parent._asdict().items() if value}, context)
    return tracer.start_span(name, context, SpanKind.SERVER, attributes)


def end_request(span: Span, outcome: Outcome, rpc_code: int | None) -> None:
    """The span's end. `rpc_code`: of the JSON-RPC error, where that is the answer."""
    if outcome.code != OK.code:
        span.set_attribute("error.type", outcome.code)
    if outcome.code in FAULTS:
        span.set_status(StatusCode.ERROR)
    if rpc_code is not None:
        span.set_attribute("rpc.response.status_code", str(rpc_code))
    span.end()


def note_crash(span: Span | None, error: Exception) -> None:
    """Tell what type of exception ended a request; its text and its place are not for traces."""
    if span is not None:
        span.add_event("exception", {"exception.type": type(error).__qualname__})


def enter(span: Span | None) -> Token[Context] | None:
    """Make it the parent of the spans that are begun from here on; `leave` ends that."""
    return None if span is None else attach(set_span_in_context(span))


def leave(token: Token[Context] | None) -> None:
    """Ends what `enter` began."""
    if token is not None:
        detach(token)


def trace_id_of(span: Span) -> str:
    """As the log has it: 32 hexadecimal digits."""
    return format_trace_id(span.get_span_context().trace_id)


def begin_attempt(upstream: str, request: "httpx2.Request", number: int) -> Span | None:
    """A span for one attempt to ask a service, which is told of it (`traceparent`).

    Of the caller's trace the service gets the id, and nothing else that the caller has sent: no state, no baggage.
    `number`: 0 for the first attempt.
    """
    if current_tracer.get() is None:
        return None
    attributes: dict[str, str | int] = {
        "server.address": request.url.host,
        "server.port": request.url.port or (443 if request.url.scheme == "https" else 80),
        "peer.service": upstream,
    }
    if number:
        attributes["http.request.resend_count"] = number
    if (span := begin_fetch(upstream, request.method, attributes)) is not None:
        made = span.get_span_context()
        ids = f"{format_trace_id(made.trace_id)}-{format_span_id(made.span_id)}"
        request.headers["traceparent"] = f"00-{ids}-{made.trace_flags:02x}"
    return span


def begin_fetch(upstream: str, method: str, attributes: Mapping[str, str | int] | None = None) -> Span | None:
    """The same for whoever answers at an address of the caller's, which neither is named nor told of it."""
    if (tracer := current_tracer.get()) is None:
        return None
    attributes = {"http.request.method": method, **(attributes or {})}
    return tracer.start_span(f"{method} {upstream}", kind=SpanKind.CLIENT, attributes=attributes)


def end_attempt(span: Span | None, result: str, status: int | None) -> None:
    """The span's end. `result`: as the metrics have it; `status`: of the answer, if there was one."""
    if span is None:
        return
    if status is not None:
        span.set_attribute("http.response.status_code", status)
    if result != "ok":
        span.set_attribute("error.type", result)
        span.set_status(StatusCode.ERROR)
    span.end()
