"""What is refused before it reaches the dispatcher, as the JSON body every error has."""

from collections.abc import Mapping
from typing import Any, Literal

from mcp_types import INVALID_REQUEST

from ..calls import Call
from ..errors import CallError, Outcome, Overloaded
from ..guards.request_log import log_request
from ..logs import Events
from ..sdk import complete_error

_RETRY_SECONDS = 60


class Refused(Exception):
    """A request that is not served: an HTTP status, a JSON-RPC error, and headers of the answer."""

    def __init__(
        self,
        status: int,
        text: str,
        *,
        code: int = INVALID_REQUEST,
        data: Any = None,
        rpc_id: str | int | None = None,
        headers: Mapping[bytes, bytes] | None = None,
        outcome: Outcome | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        self.headers = dict(headers or {})
        self._error = {"text": text, "code": code, "data": data, "rpc_id": rpc_id, "outcome": outcome}
        self._error["request_id"] = request_id

    def body(self, client: str | None) -> dict[str, Any]:
        """The JSON-RPC error, complete and logged. `client`: the address it goes to."""
        return refusal(client=client, **self._error)


class Denied(Refused):
    """A request whose sender may not make it: a status of the error's own, and the log line that every call has."""

    def __init__(self, error: CallError, call: Call, headers: Mapping[bytes, bytes]) -> None:
        super().__init__(error.status, error.message, headers=headers)
        self._denial, self._call = error, call

    def body(self, client: str | None) -> dict[str, Any]:
        """As `Refused.body`."""
        error, call = self._denial, self._call
        log_request(Events(), call, error.outcome, 0, error.rpc_code)
        shown = {"code": error.rpc_code, "message": error.message, "data": error.outcome.wire(call.request_id)}
        return {"jsonrpc": "2.0", "id": call.rpc_id, "error": shown}


def no_place(found: Literal["full", "share"], kind: str) -> Refused:
    """There is no place for one more stream or session (`kind`), or the caller has its share of them."""
    text = {
        "full": f"Too many {kind} are open. Retry after {_RETRY_SECONDS} s.",
        "share": f"You have as many {kind} open as one caller may. End one, or retry after {_RETRY_SECONDS} s.",
    }[found]
    status, headers = 429 if found == "share" else 503, {b"retry-after": b"%d" % _RETRY_SECONDS}
    outcome = Overloaded(text, retry_after=_RETRY_SECONDS).outcome
    return Refused(status, text, code=status, headers=headers, outcome=outcome)


def refusal(
    text: str,
    *,
    code: int = INVALID_REQUEST,
    data: Any = None,
    rpc_id: str | int | None = None,
    client: str | None = None,
    outcome: Outcome | None = None,
    request_id: str | None = None,
) -> dict[str, Any]:
    """A JSON-RPC error, complete and logged. `outcome`: where it is the server that cannot, not the request."""
    error = complete_error(code, text, data, "http", rpc_id, client, outcome, request_id)
    return {"jsonrpc": "2.0", "id": rpc_id, "error": error}
