"""What may happen once: a round of a call that has a state to show for it, in this process and in all that share the store."""

from typing import Literal

from ..errors import Unavailable
from .gcra import Gcra
from .store import Store, StoreDown

_SECONDS = 600  # as long as sealed state opens


class Once:
    """Remembers what has happened, for as long as it could happen again. While the store is down, and that is allowed, what
    has happened in this process alone."""

    def __init__(self, store: Store, on_store_error: Literal["allow", "deny"]) -> None:
        self._here = Gcra(60, _SECONDS)  # one a second: a cost of all of it comes back after that time
        self._store = store
        self._denies = on_store_error == "deny"

    async def __call__(self, key: str) -> bool:
        """Whether it happens for the first time.

        Raises:
            Unavailable: that is not known.
        """
        if self._here.wait(key, _SECONDS) > 0:
            return False
        try:
            if not await self._store.once(key, _SECONDS):
                return False
        except StoreDown:
            if self._denies:
                text = "Whether this is a repetition is not known now. Retry after 1 s."
                raise Unavailable(text, retry_after=1) from None
        return self._here.take(key, _SECONDS) == 0
