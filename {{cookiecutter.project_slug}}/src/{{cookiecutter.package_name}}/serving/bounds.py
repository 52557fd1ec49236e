"""Of how many parts a message may be, and what it may say beside the arguments of a call: that is kept for as long as the
call, or the stream, goes on.

The SDK's own models judge all of it, and make an error of each value in it that they do not like, with the names above
it: of a megabyte that takes a minute.
"""

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

LARGEST_ENVELOPE = 16_384  # bytes of JSON
MOST_VALUES = 1_000  # members and items, at any depth
LONGEST_NAME = 256  # characters of a member's name
MOST_PARTS = 100_000  # lists and objects of a message, at any depth: each is some hundred bytes of memory
LONGEST_ID = 1_024  # characters: it is told again with each answer and each progress

# What is bounded by the schemas of tools and prompts, and what is an answer to the server's own questions.
_ARGUMENTS = {"tools/call": "arguments", "prompts/get": "arguments"}
_ANSWERS = {"tools/call", "prompts/get", "resources/read"}
_TOLD = ("_meta", "capabilities", "clientInfo", "notifications", "context", "argument", "ref", "uri", "name", "cursor")
_DEAR = 10_000  # values of a message: more hold up everybody while they are read
_EACH = 500  # of them take as long as a call
_NO_MARKS = bytes(set(range(256)) - set(b'[{"'))


def has_many_parts(data: bytes) -> bool:
    """Whether there are too many lists and objects in JSON, which is not read for that."""
    if len(data) <= MOST_PARTS or data.count(b"[") + data.count(b"{") <= MOST_PARTS:
        return False
    marks = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS)
    return sum(map(len, marks.split(b'"')[::2])) > MOST_PARTS  # brackets in texts are none


def dearness(data: bytes) -> int:
    """What it costs to read a message of very many values, in calls; 0 for others. Commas and brackets are counted, those
    in texts too."""
    if len(data) <= _DEAR:
        return 0
    values = max(data.count(b","), data.count(b"[") + data.count(b"{"))
    return values // _EACH if values > _DEAR else 0


def excess(message: Mapping[str, Any], size: int) -> str | None:
    """What is too much in a message of `size` bytes, in words for its sender; None if nothing is."""
    if size <= LONGEST_ID:  # most are
        return None
    params, method = message.get("params") or {}, message.get("method")
    meta = params.get("_meta")
    for field, value in (("id", message.get("id")), ("params._meta.progressToken", _token_of(meta))):
        if is_long(value):
            return f"{field}: must be at most {LONGEST_ID} characters, or an integer of 64 bits. Send a shorter one."
    if method is None:
        return _excess_of_answer("result", message.get("result"))
    answers = params.get("inputResponses") if method in _ANSWERS else None
    own = {_ARGUMENTS.get(method), *(("inputResponses", "requestState") if method in _ANSWERS else ())}
    if (problem := _excess_of_answer("params.inputResponses", answers)) is not None:
        return problem
    left = {key: value for key, value in params.items() if key not in own}
    whole = {**message, "params": left}
    if not _is_much(whole) and (size <= LARGEST_ENVELOPE or len(to_json(whole)) <= LARGEST_ENVELOPE):
        return None
    return (
        f"{_largest(left)}: what a message says beside its arguments is at most {LARGEST_ENVELOPE} bytes of JSON, "
        f"{MOST_VALUES} values, and names of {LONGEST_NAME} characters. Send less of it."
    )


def _excess_of_answer(field: str, value: Any) -> str | None:
    """An answer may be large, as a picture is, but not of very many parts."""
    if not _is_much(value):
        return None
    return f"{field}: must be at most {MOST_VALUES} values, with names of {LONGEST_NAME} characters. Send less."


def _token_of(meta: Any) -> Any:
    return meta.get("progressToken") if isinstance(meta, dict) else None


def is_long(value: Any) -> bool:
    """Whether an id or token is too long to be told again and again."""
    return len(value) > LONGEST_ID if isinstance(value, str) else isinstance(value, int) and abs(value) >= 1 << 63


def _is_much(value: Any) -> bool:
    """Whether there is too much in it; looks no further than that takes."""
    left, inside = MOST_VALUES, [value]
    while inside:
        each = inside.pop()
        if isinstance(each, dict):
            left -= len(each)
            if left < 0 or any(len(name) > LONGEST_NAME for name in each):
                return True
            inside.extend(each.values())
        elif isinstance(each, list):
            left -= len(each)
            if left < 0:
                return True
            inside.extend(each)
    return False


def _largest(params: Mapping[str, Any]) -> str:
    """Where to look for what is too much: a member that the sender has made up is not named."""
    sizes = {key: len(to_json(value)) for key, value in params.items()}
    name = max(sizes, key=lambda key: sizes[key], default=None)
    return f"params.{name}" if name in _TOLD else "params"
