"""Bodies that are being received: what a caller may make this server keep before anything is known of it."""

from collections import Counter
from collections.abc import Mapping

from ..errors import Outcome
from .exchange import Receive
from .refusals import Refused

_MOST = 64 << 20  # bytes of all bodies that are not whole
_SHARE = 4  # the part of them that one caller may take is one in so many
_FULL = Outcome("overloaded", "Too much is being received. Retry after 1 s.", True, 1000, "warning")


class Bodies:
    """Reads them. `largest`: how many bytes one may have."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._most_each = max(_MOST // _SHARE, largest)
        self._most = self._most_each * _SHARE
        self._held: Counter[str | None] = Counter()
        self._held_by_all = 0

    async def read(self, headers: Mapping[str, str], receive: Receive, caller: str | None) -> bytes | None:
        """The whole body; None if the client goes first.

        Raises:
            Refused: it is too large, or too many are being received, of this caller's or of all.
        """
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > self._largest:
            raise self._too_large()
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            whole = bytearray()
            try:
                while True:
                    self._hold(caller, len(body))
                    whole += body
                    if not message.get("more_body") or len(whole) > self._largest:
                        break
                    message = await receive()
                    body = message.get("body", b"")
            finally:
                self._let_go(caller, len(whole))
            body = bytes(whole)
        if message["type"] == "http.disconnect":
            return None
        if len(body) > self._largest:
            raise self._too_large()
        return body

    def _hold(self, caller: str | None, size: int) -> None:
        if self._held[caller] + size > self._most_each or self._held_by_all + size > self._most:
            raise Refused(503, _FULL.message, code=503, headers={b"retry-after": b"1"}, outcome=_FULL)
        self._held[caller] += size
        self._held_by_all += size

    def _let_go(self, caller: str | None, size: int) -> None:
        self._held[caller] -= size
        self._held_by_all -= size
        if not self._held[caller]:
            del self._held[caller]

    def _too_large(self) -> Refused:
        return Refused(413, f"A message is at most {self._largest} bytes long.")
