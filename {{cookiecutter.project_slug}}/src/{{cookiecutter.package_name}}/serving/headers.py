"""The headers of a request, and what they have to say."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mcp_types import HEADER_MISMATCH, INVALID_REQUEST

from ..text import remembered
from .refusals import Refused

_ONCE = {"authorization", "content-length", "content-type", "host", "origin"}  # and what begins with mcp-
_CHARSETS = {"utf-8", "utf8", "us-ascii"}  # JSON is UTF-8 (RFC 8259, section 8.1), which ASCII is a part of
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"?')
_ZERO = re.compile(r"q[ \t]*=[ \t]*(0+(\.0*)?|\.0+)")


class Names:
    """Hosts or origins: one without a port stands for every port."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower() for name in names}
        self.allow = remembered(64)(self._allow)

    def _allow(self, value: str) -> bool:
        value = value.lower()
        name, _, port = value.rpartition(":")
        return value in self._names or (name in self._names and port.isascii() and port.isdigit())


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """By lower-case name, without padding, which httptools leaves (RFC 9110, section 5.5).

    A header that two readers could read differently, as it stands twice, is refused.
    """
    found: dict[str, list[str]] = {}
    for key, value in raw:
        name, text = key.decode("latin-1"), value.decode("latin-1").strip(" \t")
        if name not in found:
            found[name] = [text]
            continue
        if name in _ONCE or name.startswith("mcp-"):
            code = HEADER_MISMATCH if name.startswith("mcp-") else INVALID_REQUEST
            raise Refused(400, "A header stands twice in this request. Send each once.", code=code)
        found[name].append(text)
    return {name: ", ".join(texts) for name, texts in found.items()}


@remembered(64)
def _is_json(content_type: str) -> bool:
    kind, *parameters = content_type.lower().split(";")
    pairs = (each.partition("=") for each in parameters)
    charsets = [value.strip(' \t"') for name, _, value in pairs if name.strip(" \t") == "charset"]
    return kind.strip(" \t") == "application/json" and set(charsets) <= _CHARSETS


def check_content(headers: Mapping[str, str]) -> None:
    """Raise Refused if a body is not JSON in UTF-8 as it stands (RFC 9110, section 15.5.16)."""
    if not _is_json(headers.get("content-type", "")):
        text = "Content-Type: must be application/json, and its charset, if it has one, utf-8."
        raise Refused(415, text, headers={b"accept": b"application/json"})
    codings = headers.get("content-encoding")
    if codings and not {each.strip(" \t") for each in codings.lower().split(",")} <= {"", "identity"}:
        text = "Content-Encoding: must be identity. Send the body as it is."
        raise Refused(415, text, headers={b"accept-encoding": b"identity"})


class Accepted(NamedTuple):
    """Which kinds of answer a client accepts."""

    json: bool
    events: bool


@remembered(64)
def accepted_of(accept: str) -> Accepted:
    """What an `Accept` header says: empty, or without one, anything (RFC 9110, section 12.5.1).

    The most specific range decides, and one whose weight is zero is refused. Parameters other than the weight are
    ignored, as there is one representation of each kind.
    """
    ranges: dict[str, bool] = {}
    for part in _QUOTED.sub("", accept).split(","):
        kind, *parameters = (each.strip(" \t") for each in part.lower().split(";"))
        if kind:
            ranges[kind] = ranges.get(kind, False) or not any(map(_ZERO.fullmatch, parameters))
    if not ranges:
        return Accepted(True, True)

    def admits(*kinds: str) -> bool:
        return next((ranges[kind] for kind in kinds if kind in ranges), False)

    return Accepted(admits("application/json", "application/*", "*/*"), admits("text/event-stream", "text/*", "*/*"))
