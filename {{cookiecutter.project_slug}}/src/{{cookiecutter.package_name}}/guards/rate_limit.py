"""How much a client may ask for in a time."""

import os
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Literal

from ..calls import Call, Proceed
from ..errors import RateLimited, Unavailable
from ..limits.store import Store, StoreDown
from ..text import in_words, remembered

_CHEAP_BYTES = 65_536  # of a message; each more of it, or a part, costs 1 more


class RateLimit:
    """Charges each request to its client, by its cost, and refuses what exceeds the client's limit.

    A call costs what its tool does, any other request 1, and a large message more.
    """

    def __init__(self, store: Store, on_store_error: Literal["allow", "deny"], burst: int) -> None:
        """`burst`: what can be had at once; nothing costs more than that, or it could never be had."""
        self._store = store
        self._burst = burst
        self._denies = on_store_error == "deny"
        self._process = f"local:{os.urandom(6).hex()}"

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        try:
            wait = await self._store.take(self._key(call), self._cost(call))
        except StoreDown:
            if self._denies:
                raise Unavailable("The rate limit cannot be checked now. Retry after 1 s.", retry_after=1) from None
            wait = 0.0
        if wait > 0:
            raise RateLimited(f"Your rate limit is reached. Retry after {in_words(wait)}.", retry_after=wait)
        return await proceed(call)

    def _cost(self, call: Call) -> int:
        cost = call.target.cost if call.target is not None and call.method != "completion/complete" else 1
        return cost if call.size <= _CHEAP_BYTES else min(cost + (call.size - 1) // _CHEAP_BYTES, self._burst)

    def _key(self, call: Call) -> str:
        """The principal; without one the address, over stdio this process."""
        if call.principal.kind == "local":
            return self._process
        return call.principal.name if call.principal.kind != "anonymous" else address_key(call.client)


def address_key(address: str | None) -> str:
    """What stands for a caller of whom nothing is known but the address: for IPv6 the network, as each has 2^64."""
    return _address_key(address or "")


@remembered(1024)
def _address_key(address: str) -> str:
    try:
        found = ip_address(address)
    except ValueError:
        return "address:unknown"
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found
    return f"address:{ip_network((found, 64), strict=False) if isinstance(found, IPv6Address) else found}"
