"""One line for every request, with its outcome."""

from contextvars import ContextVar
from time import perf_counter
from typing import Any

import structlog

from ..calls import Call, Proceed
from ..errors import CANCELLED, OK, CallError, Internal, InvalidResult, Outcome
from ..logs import Events, current_request
from ..measures import Operations
from ..spans import begin_request, end_request, enter, leave, note_crash, trace_id_of

current_operations: ContextVar[Operations | None] = ContextVar("current_operations", default=None)
"""What counts requests; None: nobody wants to know. Set once, before serving begins: much of what refuses a request
outside the guards, down to the HTTP parser, knows nothing of the server it is part of."""


class RequestLog:
    """Settles how a call ended, logs it, and lets only a `CallError` out."""

    def __init__(self) -> None:
        self._events = Events()

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        call.span = begin_request(call)
        token, entered = current_request.set(_carried(call)), enter(call.span)
        began, outcome, rpc_code = perf_counter(), CANCELLED, None
        operations = current_operations.get()
        if operations is not None:
            operations.running[call.method] += 1
        try:
            result = await proceed(call)
            outcome = OK
            return result
        except CallError as error:
            outcome = error.outcome
            rpc_code = None if call.method == "tools/call" and error.as_result else error.rpc_code
            raise
        except Exception as error:  # noqa: BLE001 - the boundary that nothing unforeseen passes
            problems = {"problems": error.problems} if isinstance(error, InvalidResult) else {}
            structlog.get_logger().error("crash", tool=tool_of(call), exc_info=error, **problems)
            note_crash(call.span, error)
            failure = Internal(call.request_id)
            outcome = failure.outcome
            raise failure from None
        finally:
            if operations is not None:
                operations.running[call.method] -= 1
            log_request(self._events, call, outcome, (perf_counter() - began) * 1000, rpc_code)
            leave(entered)
            current_request.reset(token)


def log_request(events: Events, call: Call, outcome: Outcome, milliseconds: float, rpc_code: int | None = None) -> None:
    """Write the request's line, count it, and end its span. `rpc_code`: of the answer, if it is a JSON-RPC error."""
    tool = tool_of(call)
    if call.span is None:  # it was refused before it came to the guards, or nobody wants one
        call.span = begin_request(call)
    if call.span is not None:
        end_request(call.span, outcome, rpc_code)
    if (operations := current_operations.get()) is not None:
        operations.ended(call.method, tool or "", outcome.code, milliseconds / 1000)
    event: dict[str, Any] = {
        "event": "request",
        **_carried(call),
        "rpc_id": call.shown_rpc_id,
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
    if call.rejected is not None:
        event["reason"] = call.rejected.reason
    events.write(outcome.level, event)


def _carried(call: Call) -> dict[str, Any]:
    """What every event of this request has."""
    if call.span is not None:
        return {"request_id": call.request_id, "trace_id": trace_id_of(call.span)}
    if call.parent is not None:
        return {"request_id": call.request_id, "trace_id": call.parent.trace_id}
    return {"request_id": call.request_id}


def tool_of(call: Call) -> str | None:
    """The tool's name if there is such a tool: what the caller wrote in its place is not logged."""
    return call.target.name if call.target is not None and call.method == "tools/call" else None
