"""Where limits are kept: in this process, or in a store that all replicas share."""

from typing import Protocol

from ..errors import StartError
from ..settings import Settings
from ..tooling import Depends
from .gcra import Gcra


class StoreDown(Exception):
    """The store did not answer in its time."""


class Store(Protocol):
    """What keeps the limits of all clients. `failures`: calls that it could not check, ever."""

    failures: int

    async def take(self, key: str, cost: int) -> float:
        """Let a call through and charge it: 0. Or charge nothing: the seconds to wait.

        Args:
            key: names the client.
            cost: of the call.

        Raises:
            StoreDown: it is not known.
        """

    async def once(self, key: str, seconds: int) -> bool:
        """Whether none of the others that share this store has asked for this key in that time.

        Raises:
            StoreDown: it is not known.
        """


class Alone:
    """What no other process shares."""

    failures = 0

    async def once(self, key: str, seconds: int) -> bool:
        """As `Store.once`: True."""
        return True


class Unlimited(Alone):
    """No limits at all."""

    async def take(self, key: str, cost: int) -> float:
        """As `Store.take`: 0."""
        return 0.0


class MemoryStore(Alone):
    """Limits of this process alone."""

    def __init__(self, per_minute: int, burst: int) -> None:
        self._gcra = Gcra(per_minute, burst)

    async def take(self, key: str, cost: int) -> float:
        """As `Store.take`; raises nothing."""
        return self._gcra.take(key, cost)


def make_store(settings: Settings) -> tuple[Store, list[Depends]]:
    """The store that the settings name, and what is to be opened and checked for it.

    Raises:
        StartError: it cannot be used.
    """
    url, per_minute, burst = settings.rate_limit_store, settings.rate_limit_per_minute, settings.rate_limit_burst
    if url.get_secret_value().startswith("memory:"):
        return MemoryStore(per_minute, burst) if per_minute else Unlimited(), []
    try:
        from .redis import RedisStore
    except ModuleNotFoundError:
        problem = "the client for Redis is not installed; `uv sync --extra redis` installs it"
        raise StartError([f"MCP_RATE_LIMIT_STORE: {problem}"]) from None
    if per_minute == 0:
        return Unlimited(), []
    store = RedisStore(url.get_secret_value(), per_minute, burst)
    return store, [Depends(store.open, check=RedisStore.check, optional=True, label="rate_limit_store")]
