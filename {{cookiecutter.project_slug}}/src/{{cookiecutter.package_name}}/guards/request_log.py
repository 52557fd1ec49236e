"""One line for every request, with its outcome."""

from contextvars import ContextVar
from time import perf_counter
from typing import Any

import structlog

from ..calls import Call, Proceed
from ..errors import CANCELLED, OK, CallError, Internal, InvalidResult, Outcome
from ..logs import Events, current_request
from ..measures import Operations

current_operations: ContextVar[Operations | None] = ContextVar("current_operations", default=None)
"""What counts requests; None: nobody wants to know. Set once, before serving begins: much of what refuses a request
outside the guards, down to the HTTP parser, knows nothing of the server it is part of."""


class RequestLog:
    """Settles how a call ended, logs it, and lets only a `CallError` out."""

    def __init__(self) -> None:
        self._events = Events()

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        token = current_request.set({"request_id": call.request_id})
        began, outcome = perf_counter(), CANCELLED
        operations = current_operations.get()
        if operations is not None:
            operations.running[call.method] += 1
        try:
            result = await proceed(call)
            outcome = OK
            return result
        except CallError as error:
            outcome = error.outcome
            raise
        except Exception as error:  # noqa: BLE001 - the boundary that nothing unforeseen passes
            problems = {"problems": error.problems} if isinstance(error, InvalidResult) else {}
            structlog.get_logger().error("crash", tool=tool_of(call), exc_info=error, **problems)
            outcome = Internal().outcome
            raise Internal from None
        finally:
            if operations is not None:
                operations.running[call.method] -= 1
            log_request(self._events, call, outcome, (perf_counter() - began) * 1000)
            current_request.reset(token)


def log_request(events: Events, call: Call, outcome: Outcome, milliseconds: float) -> None:
    """Write the request's line, and count it."""
    tool = tool_of(call)
    if (operations := current_operations.get()) is not None:
        operations.ended(call.method, tool or "", outcome.code, milliseconds / 1000)
    event: dict[str, Any] = {
        "event": "request",
        "request_id": call.request_id,
        "rpc_id": _shown(call.rpc_id),
        "method": call.method,
        "tool": tool,
        "principal": call.principal.name,
        "transport": call.transport,
        "protocol_version": call.protocol_version,
        "outcome": outcome.code,
        "duration_ms": round(milliseconds, 3),
    }
    if call.client is not None:
        event["client"] = call.client
    if call.trace_id is not None:
        event["trace_id"] = call.trace_id
    if call.rejected is not None:
        event["reason"] = call.rejected.reason
    events.write(outcome.level, event)


def _shown(rpc_id: object) -> str | int | None:
    """The caller's id can be as long as they like."""
    if isinstance(rpc_id, str):
        return rpc_id[:64]
    return rpc_id if isinstance(rpc_id, int) and abs(rpc_id) < 1 << 64 else None


def tool_of(call: Call) -> str | None:
    """The tool's name if there is such a tool: what the caller wrote in its place is not logged."""
    return call.target.name if call.target is not None and call.method == "tools/call" else None
