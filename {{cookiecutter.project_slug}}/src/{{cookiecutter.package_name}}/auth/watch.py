"""What outlives its request's admission, and is asked again: listen streams, and streams that wait for a message."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .credentials import Authenticator, Rejected
from .principal import Principal

_TICK_SECONDS = 1.0


class Held:
    """One thing that lasts, and whose it is."""

    def __init__(
        self,
        authenticator: Authenticator | None,
        principal: Principal,
        needs: frozenset[str],
        end: Callable[[], None],
    ) -> None:
        self._authenticator = authenticator
        self._principal = principal
        self._needs = needs
        self._end = end
        self._is_over = False

    def ask(self) -> bool:
        """Whether its holder may still have it; ends it if not. To be asked before anything is told."""
        if not self._is_over and not self._may_last():
            self._is_over = True
            self._end()
        return not self._is_over

    def _may_last(self) -> bool:
        if self._authenticator is None or self._principal.kind in ("local", "anonymous"):
            return True
        try:
            return self._needs <= self._authenticator.recheck(self._principal).scopes
        except Rejected:
            return False


class Watch:
    """Ends what lasts within a second of the expiry or withdrawal of the credential that it was begun with, or of the
    loss of a scope that it needs. One timer serves all of them, and none runs while there are none."""

    def __init__(self, authenticator: Authenticator | None) -> None:
        """`authenticator`: of the credentials; None: there are none."""
        self._authenticator = authenticator
        self._held: set[Held] = set()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def holding(self, principal: Principal, needs: frozenset[str], end: Callable[[], None]) -> Iterator[Held]:
        """While something lasts. `needs`: all scopes that it takes. `end`: is to end it; called once, and soon."""
        held = Held(self._authenticator, principal, needs, end)
        self._held.add(held)
        if self._timer is None:
            self._tick_later()
        try:
            yield held
        finally:
            self._held.discard(held)
            if not self._held and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _tick_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._tick_later()
        for held in list(self._held):
            held.ask()
