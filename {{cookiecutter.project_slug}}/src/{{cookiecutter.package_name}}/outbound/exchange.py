"""One request and its whole answer: bounded in time and size, and every way to fail named."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import anyio
import httpx2
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from ..errors import UpstreamUnavailable

_ModelT = TypeVar("_ModelT")

Reason = Literal[
    "no_connection", "timeout", "broken_off", "status", "too_large", "unreadable", "redirected", "full", "open"
]
"""Why there is no answer to use."""
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class NoAnswer(Exception):
    """An attempt that gave no answer to use.

    Args:
        reason: one of a closed set.
        said: what to tell the caller of the service, as in "did not answer in time".
        passes: whether another attempt may do better.
        was_sent: whether the service may have got the request.
        wait: seconds that the service asks for.
        status: of its answer, if there was one.
    """

    def __init__(
        self,
        reason: Reason,
        said: str,
        *,
        passes: bool = True,
        was_sent: bool = True,
        wait: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__()
        self.reason: Reason = reason
        self.said = said
        self.passes = passes
        self.was_sent = was_sent
        self.wait = wait
        self.status = status

    @property
    def label(self) -> str:
        """The reason, for the log and the metrics: a status is a part of it where there is a bounded choice of them."""
        return f"status_{self.status}" if self.status in RETRIED_STATUSES else self.reason

    @property
    def can_repeat(self) -> bool:
        """Whether to try again within the call: what the breaker or a full queue refused would only add to the load."""
        if self.status is not None:
            return self.status in RETRIED_STATUSES
        return self.passes and self.reason not in ("full", "open")

    @property
    def is_outage(self) -> bool:
        """Whether it says that the service is not well."""
        return self.reason in ("no_connection", "timeout", "broken_off") or (self.status or 0) >= 500


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. `upstream`: the service's name; `headers`: their names in any case."""

    upstream: str
    status: int
    headers: httpx2.Headers = field(repr=False)
    body: bytes = field(repr=False)
    next_request: httpx2.Request | None = field(default=None, repr=False)
    """Where it redirects to."""

    def json(self) -> Any:
        """The body as JSON data.

        Raises:
            UpstreamUnavailable: it is none.
        """
        try:
            return from_json(self.body)
        except ValueError:
            raise UpstreamUnavailable(_UNREADABLE.format(self.upstream)) from None

    def parse(self, model: type[_ModelT]) -> _ModelT:
        """The body as what `model` says; what it does not name is left out.

        Raises:
            UpstreamUnavailable: it is something else.
        """
        try:
            return TypeAdapter(model).validate_json(self.body)
        except ValidationError:
            raise UpstreamUnavailable(_UNREADABLE.format(self.upstream)) from None


_UNREADABLE = "{} gave an answer that cannot be read. Retry later."


async def exchange(
    client: httpx2.AsyncClient, request: httpx2.Request, upstream: str, *, seconds: float, largest: int
) -> Response:
    """Send a request and read its answer.

    Args:
        client: follows no redirects.
        upstream: the service's name.
        seconds: for all of it.
        largest: the bytes that the body may have, decompressed.

    Raises:
        NoAnswer: there is none to use.
    """
    body = bytearray()
    try:
        with anyio.move_on_after(seconds):
            response = await client.send(request, stream=True)
            try:
                async for part in response.aiter_bytes():  # decompressed 1 MiB at a time (httpx2 2.12)
                    body += part
                    if len(body) > largest:
                        raise NoAnswer("too_large", f"gave an answer larger than {largest} bytes", passes=False)
            finally:
                await response.aclose()
            return Response(upstream, response.status_code, response.headers, bytes(body), response.next_request)
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError):
        raise NoAnswer("no_connection", "cannot be reached", was_sent=False) from None
    except httpx2.TimeoutException:
        pass
    except httpx2.DecodingError:
        raise NoAnswer("unreadable", "gave an answer that cannot be read") from None
    except UnicodeError:  # httpx2 2.16 reads where a redirect leads, and lets out what idna says of it
        raise NoAnswer("redirected", "redirects to what is no address", passes=False) from None
    except (httpx2.NetworkError, httpx2.RemoteProtocolError):
        raise NoAnswer("broken_off", "broke off before its answer was whole") from None
    raise NoAnswer("timeout", "did not answer in time")
