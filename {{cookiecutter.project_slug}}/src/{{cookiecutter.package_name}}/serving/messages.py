"""JSON-RPC messages as they come in, on either transport."""

import gc
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio
from mcp.shared.dispatcher import CallOptions
from mcp_types import CLIENT_INFO_META_KEY, INVALID_REQUEST, PARSE_ERROR
from pydantic_core import from_json, to_json

from ..sdk import NOT_JSON
from .bounds import MOST_PARTS, excess, has_many_parts, is_long

Json = dict[str, Any]

_MUCH = 16_384  # bytes
_HEAD = ("jsonrpc", "id", "method", "result", "error")  # what makes a message
_ONCE = (b'"id"', b'"method"', b'"params"', b'"name"', b'"uri"', b'"arguments"', b'"_meta"')
_MANY = f"A message has at most {MOST_PARTS} lists and objects. Send less at a time."


class Unreadable(Exception):
    """What came in is no message: the JSON-RPC error it is answered with."""

    def __init__(self, code: int, text: str, rpc_id: str | int | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.rpc_id = rpc_id


def parse(data: bytes) -> Json:
    """One JSON-RPC message: a request, a notification (no id) or a response (no method).

    Raises:
        Unreadable: it is none of them. Batches are none: no revision since 2025-06-18 has them.
    """
    try:
        message, has_many = (_read if len(data) <= _MUCH else _read_much)(data)
    except ValueError as error:
        raise Unreadable(PARSE_ERROR, _why_not_json(data, error)) from None
    if isinstance(message, list):
        raise Unreadable(INVALID_REQUEST, "Batches are not accepted. Send one JSON-RPC message at a time.")
    if not isinstance(message, dict):
        raise Unreadable(INVALID_REQUEST, "A JSON-RPC message is an object. Send one at a time.")
    rpc_id = message.get("id")
    has_id = isinstance(rpc_id, str | int) and not isinstance(rpc_id, bool)
    shown_id = rpc_id if has_id and not is_long(rpc_id) else None
    problems = [*_problems(message, has_id)]
    if not problems and (problem := _MANY if has_many else excess(message, len(data))) is not None:
        raise Unreadable(INVALID_REQUEST, problem, shown_id)
    if problems := problems or [*_doubled(data, message)]:
        text = f"This is not a JSON-RPC message. {'; '.join(problems)}."
        raise Unreadable(INVALID_REQUEST, text, shown_id)
    return message


def _read(data: bytes) -> tuple[Any, bool]:
    """JSON, and whether it has more parts than are read."""
    return from_json(data, allow_inf_nan=False), False


def _read_much(data: bytes) -> tuple[Any, bool]:
    with _uncollected():
        message = from_json(data, allow_inf_nan=False)
        if has_many := has_many_parts(data):  # they go before the collector looks at each
            parts = message.items() if isinstance(message, dict) else ()
            message = {name: part for name, part in parts if name in _HEAD} if parts else []
        return message, has_many


@contextmanager
def _uncollected() -> Iterator[None]:
    """While much is read, the collector of garbage would look at each part of it again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _why_not_json(data: bytes, error: ValueError) -> str:
    if not data.strip():
        return "There is nothing here. Send one JSON-RPC message at a time."
    if "recursion limit" in str(error):
        return "This is nested too deeply. Send less than 200 objects and lists within each other."
    try:
        data.decode()
    except UnicodeDecodeError:
        return "This is not UTF-8, as JSON has to be. Encode the message so."
    return NOT_JSON


def _problems(message: Json, has_id: bool) -> Iterator[str]:
    """What keeps an object from being a message."""
    if message.get("jsonrpc") != "2.0":
        yield 'jsonrpc: must be "2.0"'
    if "id" in message and not has_id:
        yield "id: must be a string or an integer"
    if "method" in message:
        if not isinstance(message["method"], str):
            yield "method: must be a string"
    elif "result" in message and "error" in message:
        yield "result, error: must not stand together"
    elif "result" not in message and "error" not in message:
        yield "method: is required"
    elif "id" not in message:
        yield "id: is required"
    if not isinstance(message.get("params"), dict | None):
        yield "params: must be an object"


def _doubled(data: bytes, message: Json) -> Iterator[str]:
    """The members that stand twice, of which a gateway could read the other one.

    Nearly every message is seen to have none without being read again.
    """
    params = message.get("params") or {}
    meta = params.get("_meta")
    client = meta.get(CLIENT_INFO_META_KEY) if isinstance(meta, dict) else None
    spare = isinstance(client, dict)  # it has a name too
    if (
        data.count(b'"id"') < 2
        and data.count(b'"method"') < 2
        and data.count(b'"params"') < 2
        and data.count(b'"name"') < 2 + spare
        and data.count(b'"uri"') < 2
        and data.count(b'"arguments"') < 2
        and data.count(b'"_meta"') < 2
        and b"\\u00" not in data  # a way to write letters
    ):
        return
    if len(data) > _MUCH and b"\\u00" not in data:  # most of it is arguments, in which names may be what they like
        inside = to_json(params.get("arguments"))
        if all(data.count(name) - inside.count(name) < 2 + (spare and name == b'"name"') for name in _ONCE):
            return
    with _uncollected():
        members = json.loads(data, object_pairs_hook=tuple)
    for place, names, found in (
        ("", ("id", "method", "params"), members),
        ("params.", ("name", "uri", "arguments", "_meta"), dict(members).get("params") or ()),
    ):
        counts = Counter(name for name, _ in found)
        yield from (f"{place}{name}: must stand once" for name in names if counts[name] > 1)


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
