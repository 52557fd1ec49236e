"""Who is connected over HTTP: bounded in all and for each address, as a connection costs a descriptor before it says a word.

Idle ones, and those that let this server wait for the rest of a request, give way to new ones. What is kept for clients that
do not read their answers is bounded in the same way.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Protocol

import structlog

from ..guards.rate_limit import address_key
from ..limits.gcra import Gcra
from ..settings import is_loopback

_MOST = 10_000
_PART = 0.75  # of the descriptors; the others are for what tools, the log and connections to other services open
_SHARE = 0.25  # of the connections, for one address
_GIVEN = 30  # places a second that one address is given by closing its own: those who come back at once cost no more
_MANY = 0.9  # of the connections: below, places have run out no more
_MOST_UNREAD = 64 << 20  # bytes of answers that wait for their clients to read, in all
_KEPT = 8  # beyond all, for this machine: a health check gets in


class Connection(Protocol):
    """One of them.

    `waits`: it is its client's turn. `unread`: bytes of answers that the client has not taken.
    """

    @property
    def address(self) -> str | None: ...

    @property
    def waits(self) -> bool: ...

    @property
    def unread(self) -> int: ...

    def give_way(self) -> None:
        """Close."""


class Connections:
    """Those there are. `most`, `most_each`: how many there may be, and from one address."""

    def __init__(self, proxies: Sequence[str], least_unread: int = 0, descriptors: int | None = None) -> None:
        """
        Args:
            least_unread: bytes of answers that may wait for one address in any case.
            proxies: addresses and networks that connect for many callers, and have no bound of their own.
            descriptors: that this process may have; None: as the system says.
        """
        found = _descriptors() if descriptors is None else descriptors
        self.most = max(_KEPT, min(_MOST, int(found * _PART)))
        self.most_each = max(_KEPT // 2, int(self.most * _SHARE))
        networks = [ip_network(each) for each in proxies]
        self._is_proxy = lru_cache(maxsize=1024)(lambda address: any(ip_address(address) in each for each in networks))
        self._most_unread_each = max(int(_MOST_UNREAD * _SHARE), least_unread)
        self._most_unread = int(self._most_unread_each / _SHARE)
        self._unread: dict[Connection, str] = {}  # whose each is, the one that has not been read for the longest first
        self._by_caller: dict[str, dict[Connection, None]] = {}  # the one that was answered first, or came, first
        self._given = Gcra(60 * _GIVEN, 2 * self.most)
        self._count = 0
        self._told: set[tuple[str, str]] = set()  # of whom what was logged, "" for all

    def take(self, new: Connection) -> bool:
        """Give it a place, or say that there is none."""
        caller, address = address_key(new.address), new.address
        own = self._by_caller.get(caller, {})
        if len(own) >= self.most_each and not self._is_named(new):
            self._tell("connections_full", caller, client=address, most=self.most_each)
            has_place = self._given.take(caller) == 0 and self._make_room([own])
        elif self._count >= self.most:
            self._tell("connections_full", "", most=self.most)
            crowds = self._by_caller.values()
            has_place = (
                self._make_room([max(crowds, key=len)])  # nearly always: to sort thousands costs more than this all
                or self._make_room(sorted(crowds, key=len, reverse=True))
                or (is_loopback(address or "") and self._count < self.most + _KEPT)
            )
        else:
            has_place = True
        if has_place:
            self._by_caller.setdefault(caller, {})[new] = None
            self._count += 1
        return has_place

    def is_answered(self, one: Connection) -> None:
        """It is its client's turn again."""
        own = self._by_caller.get(address_key(one.address), {})
        if one in own:
            del own[one]
            own[one] = None

    def leave(self, one: Connection) -> None:
        """It has ended, or is about to."""
        caller = address_key(one.address)
        own = self._by_caller.get(caller, {})
        if one not in own:
            return
        del own[one]
        self._unread.pop(one, None)
        self._count -= 1
        if not own:
            del self._by_caller[caller]
            self._told -= {("connections_full", caller), ("answers_not_read", caller)}
        if self._count < self.most * _MANY:
            self._told.discard(("connections_full", ""))

    def is_unread(self, one: Connection) -> None:
        """More is kept for its client than the system takes: where that is too much, of its address or of all, who has not
        read for the longest is closed."""
        self._unread[one] = address_key(one.address)
        while self._unread:
            held: Counter[str] = Counter()
            for each, caller in self._unread.items():
                held[caller] += each.unread
            caller, _ = held.most_common(1)[0]
            is_much = held.total() > self._most_unread
            for first, whose in self._unread.items():
                is_over = held[whose] > self._most_unread_each and not self._is_named(first)
                if is_over or (is_much and whose == caller):
                    break
            else:
                return
            self._tell("answers_not_read", whose, client=first.address, unread_bytes=held[whose])
            self.leave(first)
            first.give_way()

    def is_read(self, one: Connection) -> None:
        """The system has taken what was kept."""
        self._unread.pop(one, None)

    def _is_named(self, one: Connection) -> bool:
        """Whether it is a proxy's."""
        return one.address is not None and self._is_proxy(one.address)

    def _make_room(self, crowds: Iterable[dict[Connection, None]]) -> bool:
        """Close the one that has waited longest, of the first crowd that has one."""
        for crowd in crowds:
            if (first := next((each for each in crowd if each.waits), None)) is not None:
                self.leave(first)
                first.give_way()
                return True
        return False

    def _tell(self, event: str, whose: str, **fields: object) -> None:
        """Log that something has run out, once until there is some again."""
        if (event, whose) not in self._told:
            self._told.add((event, whose))
            structlog.get_logger().warning(event, **fields)


def _descriptors() -> int:
    if sys.platform == "win32":
        return _MOST
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] % (1 << 63)  # unlimited is written as -1
