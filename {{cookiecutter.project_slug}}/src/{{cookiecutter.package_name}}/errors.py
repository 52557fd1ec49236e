"""Every way a call can end: one closed set of codes, used on the wire, in the log, in metrics and in traces.

    CallError                  a call that did not succeed; `code` below
    ├── InvalidArguments       invalid_arguments     do not fit the published schema
    ├── InvalidRequest         invalid_request       not a request this server can read
    ├── UnknownTool            unknown_tool
    ├── NotFound               not_found             no such prompt or resource
    ├── Unauthenticated        unauthenticated       no valid credential
    ├── Forbidden              forbidden             the credential lacks a scope
    ├── RateLimited            rate_limited          the client's limit tripped
    ├── Overloaded             overloaded            too many calls in flight
    ├── Unavailable            unavailable           something the server itself needs is down
    ├── TimedOut               timeout               ran past its limit
    ├── ShuttingDown           shutting_down         cut by the drain deadline
    ├── UpstreamUnavailable    upstream_unavailable  an outbound call failed after its retries
    ├── UpstreamRejected       upstream_rejected     the upstream refused, and would again
    ├── Failed                 failed                what a tool raises to tell the model why not
    ├── ResultTooLarge         result_too_large
    └── Internal               internal              a crash; nothing of it is told

`ok` and `cancelled` (no answer is sent) complete the set: see `Outcome`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar, Literal

from .text import clean

_LONGEST_MESSAGE = 4000  # characters

Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one call ended: the wire error and the log line are two views of it."""

    code: str
    message: str = ""
    retryable: bool = False
    retry_after_ms: int | None = None
    level: Level = "info"

    def wire(self, request_id: str) -> dict[str, Any]:
        """`{"code", "message", "retryable", "retry_after_ms" (where known), "request_id"}`."""
        shown: dict[str, Any] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        if self.retry_after_ms is not None:
            shown["retry_after_ms"] = self.retry_after_ms
        return shown | {"request_id": request_id}


OK = Outcome("ok")
CANCELLED = Outcome("cancelled")


class CallError(Exception):
    """A call that did not succeed.

    `message` goes to the caller and to the model: it names the remedy, and never an argument's value, an exception's
    text, a path or a secret.
    """

    code: ClassVar[str]
    retryable: ClassVar[bool] = False
    level: ClassVar[Level] = "info"
    status: ClassVar[int] = 500
    """The JSON-RPC error code where the answer cannot be a tool result and the specification defines none: an HTTP
    status, as codes from -32768 to -32000 are reserved."""
    as_result: ClassVar[bool] = True
    """Whether `tools/call` answers with a result the model reads (`isError`) or with a JSON-RPC error."""

    def __init__(self, message: str, *, retryable: bool | None = None, retry_after: float | None = None) -> None:
        """`retryable`: where it differs from the class's. `retry_after`: seconds, where the wait is known."""
        super().__init__(message)
        self.message: str = clean(message[: 2 * _LONGEST_MESSAGE])[:_LONGEST_MESSAGE]
        self.can_retry = self.retryable if retryable is None else retryable
        self.retry_after = retry_after
        self.rpc_code = self.status
        self.rpc_data: dict[str, Any] = {}

    @property
    def outcome(self) -> Outcome:
        """This error as the outcome of its call."""
        wait = None if self.retry_after is None else max(0, ceil(self.retry_after * 1000))
        return Outcome(self.code, self.message, self.can_retry, wait, self.level)


class InvalidArguments(CallError):
    """`problems`: one line each, all of them at once."""

    code = "invalid_arguments"
    status = -32602

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("\n".join(problems))


class InvalidRequest(CallError):
    """`rpc_code` and `rpc_data`: what the specification gives for this case."""

    code = "invalid_request"
    as_result = False

    def __init__(self, message: str, rpc_code: int = -32600, rpc_data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code
        self.rpc_data = rpc_data or {}


class UnknownTool(CallError):
    code = "unknown_tool"
    status = -32602
    as_result = False

    def __init__(self) -> None:
        super().__init__("There is no tool of this name. tools/list shows the tools there are.")


class NotFound(CallError):
    code = "not_found"
    status = -32602
    as_result = False

    def __init__(self, message: str, rpc_data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.rpc_data = rpc_data or {}


class Unauthenticated(CallError):
    code = "unauthenticated"
    level = "warning"
    status = 401


class Forbidden(CallError):
    code = "forbidden"
    level = "warning"
    status = 403


class RateLimited(CallError):
    code = "rate_limited"
    retryable = True
    level = "warning"
    status = 429


class Overloaded(CallError):
    code = "overloaded"
    retryable = True
    level = "warning"
    status = 503


class Unavailable(CallError):
    code = "unavailable"
    retryable = True
    level = "error"
    status = 503


class TimedOut(CallError):
    code = "timeout"
    retryable = True
    level = "warning"
    status = 504


class ShuttingDown(CallError):
    code = "shutting_down"
    retryable = True
    level = "warning"
    status = 503


class UpstreamUnavailable(CallError):
    code = "upstream_unavailable"
    retryable = True
    level = "warning"
    status = 502


class UpstreamRejected(CallError):
    code = "upstream_rejected"
    level = "warning"
    status = 502


class Failed(CallError):
    """What a tool raises when it cannot do what was asked: `raise Failed("Part is discontinued. Try ABC-1234.")`."""

    code = "failed"
    status = 422


class ResultTooLarge(CallError):
    code = "result_too_large"
    level = "warning"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The result is larger than {limit} bytes. Ask for less: narrow the request, or page through.")


class Internal(CallError):
    code = "internal"
    level = "error"
    status = -32603

    def __init__(self, request_id: str) -> None:
        super().__init__(f"The server failed on this call. Quote request id {request_id} to its operator.")


class InvalidResult(Exception):
    """A function did not return what its annotation says. `problems`: the fields and the rules, not the values."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__()
        self.problems = problems


class StartError(Exception):
    """The server cannot start as it is configured or written. `problems`: one line each, each with its remedy."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(self.problems))
