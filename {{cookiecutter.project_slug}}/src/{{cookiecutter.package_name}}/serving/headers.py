"""The headers of a request, and what they have to say."""

from collections.abc import Iterable
from functools import lru_cache

from mcp_types import HEADER_MISMATCH, INVALID_REQUEST

from .refusals import Refused

_ONCE = {"authorization", "content-length", "content-type", "host", "origin"}  # and what begins with mcp-


class Names:
    """Hosts or origins: one without a port stands for every port."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = {name.lower() for name in names}
        self.allow = lru_cache(maxsize=64)(self._allow)

    def _allow(self, value: str) -> bool:
        value = value.lower()
        name, _, port = value.rpartition(":")
        return value in self._names or (name in self._names and port.isascii() and port.isdigit())


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """By lower-case name, without padding, which httptools leaves (RFC 9110, section 5.5).

    A header that two readers could read differently, as it stands twice, is refused.
    """
    found: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1"), value.decode("latin-1").strip(" \t")
        if name in found:
            if name in _ONCE or name.startswith("mcp-"):
                code = HEADER_MISMATCH if name.startswith("mcp-") else INVALID_REQUEST
                raise Refused(400, "A header stands twice in this request. Send each once.", code=code)
            text = f"{found[name]}, {text}"
        found[name] = text
    return found


@lru_cache(maxsize=64)
def is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/json"


@lru_cache(maxsize=64)
def accepts(accept: str) -> tuple[bool, bool]:
    """Whether JSON and whether event streams are accepted (RFC 9110, section 12.5.1)."""
    kinds = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    return not kinds.isdisjoint({"application/json", "application/*", "*/*"}), not kinds.isdisjoint(
        {"text/event-stream", "text/*", "*/*"}
    )
