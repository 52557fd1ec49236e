"""Which credentials were valid a short while ago."""

import os
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b

from .principal import Principal

_SECONDS = 600.0
_FRESH = 10.0  # in which another use changes nothing
_MOST = 10_000
_MOST_OF_ONE = 8  # a principal's: whoever can have many tokens made pushes out nobody else's


class Remembered:
    """Credentials that were found valid within ten minutes, by a hash under a key of this process's own.

    It says who need not wait, not who is let in: a credential is checked each time, remembered or not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: in seconds."""
        self._clock = clock
        self._key = os.urandom(32)
        self._valid: dict[bytes, tuple[float, str]] = {}  # until when, and whose; in the order of their last use
        self._of: dict[str, deque[bytes]] = {}  # by principal, in the order of their first use

    def __contains__(self, credential: str) -> bool:
        until, _ = self._valid.get(self._mark(credential), (0.0, ""))
        return until > self._clock()

    def __len__(self) -> int:
        return len(self._valid)

    def add(self, credential: str, principal: Principal) -> None:
        """It was valid just now."""
        mark, now = self._mark(credential), self._clock()
        if (known := self._valid.get(mark)) is not None and known[0] - now > _SECONDS - _FRESH:
            return
        _, name = self._valid.pop(mark, (now, None))
        if name is None:
            name = principal.name
            own = self._of.setdefault(name, deque())
            if len(own) == _MOST_OF_ONE:
                del self._valid[own.popleft()]
            own.append(mark)
        self._valid[mark] = (now + _SECONDS, name)
        for _ in range(2):  # for each that comes: the table shrinks, and no request pays for all of it
            oldest = next(iter(self._valid))
            if self._valid[oldest][0] > now and len(self._valid) <= _MOST:
                return
            self._drop(oldest)

    def discard(self, credential: str) -> None:
        """It is not valid any more."""
        mark = self._mark(credential)
        if mark in self._valid:
            self._drop(mark)

    def _drop(self, mark: bytes) -> None:
        _, name = self._valid.pop(mark)
        self._of[name].remove(mark)
        if not self._of[name]:
            del self._of[name]

    def _mark(self, credential: str) -> bytes:
        return blake2b(credential.encode("utf-8", "surrogatepass"), key=self._key, digest_size=16).digest()
