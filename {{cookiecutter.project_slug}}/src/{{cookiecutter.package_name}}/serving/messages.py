"""JSON-RPC messages as they come in, on either transport."""

from typing import Any

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


def progress_of(message: Json, progress: float, total: float | None, text: str | None) -> Json | None:
    """The parameters of a progress notification about a request; None if its sender wants none."""
    meta = (message.get("params") or {}).get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    if isinstance(token, bool) or not isinstance(token, str | int):
        return None
    params = {"progressToken": token, "progress": progress, "total": total, "message": text}
    return {name: value for name, value in params.items() if value is not None}
