"""One request on its way down to a tool, and the guards it passes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from opentelemetry.trace import Span

from .auth.credentials import Rejected
from .auth.principal import Principal

Transport = Literal["stdio", "http"]


class Target(Protocol):
    """What a request is for: a tool, a resource or a prompt, as its author declared it."""

    @property
    def name(self) -> str: ...

    @property
    def scopes(self) -> frozenset[str]:
        """All of them are needed."""

    @property
    def cost(self) -> int:
        """What one call takes from its caller's rate limit."""

    @property
    def timeout_seconds(self) -> float | None:
        """None: the default of the settings."""

    @property
    def read_only(self) -> bool: ...

    @property
    def idempotent(self) -> bool: ...

    @property
    def has_context(self) -> bool:
        """Whether it can send something ahead of its result."""

    @property
    def asks(self) -> bool:
        """Whether it may answer with a question, and be called again with the answer."""

    def refuse_unknown(self, arguments: Mapping[str, Any]) -> None:
        """Raise InvalidArguments if there are more of them than parameters."""


current_target: ContextVar[Target | None] = ContextVar("current_target", default=None)
"""What the request being served is for."""


current_size: ContextVar[int] = ContextVar("current_size", default=0)
"""Bytes of the message that is being served."""

current_caller: ContextVar[str | None] = ContextVar("current_caller", default=None)
"""Whose share of what is few the call being served takes; None: it has no share, and takes what is free."""


class Parent(NamedTuple):
    """The caller's own span, which a request belongs to (W3C Trace Context). `traceparent` is well-formed."""

    traceparent: str
    tracestate: str | None

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return self.traceparent[3:35]


@dataclass(slots=True)
class Call:
    """One MCP request.

    `target` is None for requests that reach no code of the user's (lists, `server/discover`) and for unknown names.
    `needs`: all scopes that it takes.
    """

    request_id: str
    rpc_id: str | int | None
    method: str
    target: Target | None
    needs: frozenset[str]
    principal: Principal
    transport: Transport
    protocol_version: str
    parent: Parent | None = None
    client: str | None = None
    """Over HTTP: the address it came from, as the trusted proxies report it."""
    rejected: Rejected | None = None
    """Why the caller's credential is of no use."""
    size: int = 0
    """Bytes of its message."""
    span: Span | None = None
    """Its own; None where nobody wants traces."""

    @property
    def shown_rpc_id(self) -> str | int | None:
        """For logs, which cut a text, and traces: the caller's number can be as long as they like."""
        if isinstance(self.rpc_id, str):
            return self.rpc_id
        return self.rpc_id if isinstance(self.rpc_id, int) and abs(self.rpc_id) < 1 << 64 else None


def effect_of(target: Target) -> tuple[str, bool]:
    """What can be said of a call that was cut short: whether it may have taken effect, and whether to repeat it."""
    if target.read_only:
        return "Nothing was changed; it is safe to retry.", True
    if target.idempotent:
        return "It may have taken effect; repeating the same call is safe.", True
    return "It is not known whether it took effect: check before you repeat it.", False


Proceed = Callable[[Call], Awaitable[Any]]


class Guard(Protocol):
    """What a call passes before a tool: look, then `await proceed(call)` or raise a `CallError`."""

    async def __call__(self, call: Call, proceed: Proceed) -> Any: ...


def chain(guards: Sequence[Guard], last: Proceed) -> Proceed:
    """`guards` in their order, first outermost, around `last`."""
    for guard in reversed(guards):
        last = partial(guard, proceed=last)
    return last
