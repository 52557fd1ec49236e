"""JSON-RPC messages as they come in, on either transport."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import anyio
from mcp.shared.dispatcher import CallOptions
from mcp_types import INVALID_REQUEST, PARSE_ERROR
from pydantic_core import from_json

from ..sdk import NOT_A_MESSAGE

Json = dict[str, Any]


class Unreadable(Exception):
    """What came in is no message: the JSON-RPC error it is answered with."""

    def __init__(self, code: int, text: str, rpc_id: str | int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.rpc_id = rpc_id


def parse(data: bytes | bytearray) -> Json:
    """One JSON-RPC message: a request, a notification (no id) or a response (no method).

    Raises:
        Unreadable: it is none of them. Batches are none: no revision since 2025-06-18 has them.
    """
    try:
        message = from_json(data, allow_inf_nan=False)
    except ValueError:  # not JSON, not UTF-8, or nested too deeply
        raise Unreadable(PARSE_ERROR, "") from None
    if not isinstance(message, dict):
        raise Unreadable(INVALID_REQUEST, NOT_A_MESSAGE)
    rpc_id = message.get("id")
    has_id = isinstance(rpc_id, str | int) and not isinstance(rpc_id, bool)
    is_response = "method" not in message and has_id and ("result" in message) != ("error" in message)
    if (
        message.get("jsonrpc") != "2.0"
        or not (is_response or isinstance(message.get("method"), str))
        or not (has_id or "id" not in message)
        or not isinstance(message.get("params"), dict | None)
    ):
        raise Unreadable(INVALID_REQUEST, NOT_A_MESSAGE, rpc_id if has_id else None)
    return message


class RequestContext(ABC):
    """What both transports share of the SDK's dispatch context of a request (`mcp.shared.dispatcher.DispatchContext`)."""

    def __init__(self, message: Json) -> None:
        self.request_id: str | int | None = message.get("id")
        meta = (message.get("params") or {}).get("_meta")
        self._progress_token = meta.get("progressToken") if isinstance(meta, dict) else None
        self._cancel_requested: anyio.Event | None = None

    @property
    def cancel_requested(self) -> anyio.Event:
        """Never set: cancelling a request stops what serves it."""
        self._cancel_requested = self._cancel_requested or anyio.Event()
        return self._cancel_requested

    @abstractmethod
    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Send a notification that belongs to the request."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Report progress, if the caller asked for it."""
        token = self._progress_token
        if isinstance(token, str | int) and not isinstance(token, bool):
            params = {"progressToken": token, "progress": progress, "total": total, "message": message}
            await self.notify("notifications/progress", {k: v for k, v in params.items() if v is not None})
