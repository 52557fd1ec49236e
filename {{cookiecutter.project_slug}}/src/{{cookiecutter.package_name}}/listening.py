"""Streams of `subscriptions/listen` (2026-07-28): how many there may be, and until when each tells anything."""

from dataclasses import replace
from typing import Any, cast

import mcp_types as types
from mcp.server import ServerRequestContext
from mcp.server.session import ServerSession
from mcp.server.subscriptions import ListenHandler, SubscriptionBus

from .auth.principal import current_principal
from .auth.watch import Held, Watch
from .errors import Overloaded
from .limits.shares import Shares

MOST_STREAMS = 1024


class Listeners:
    """Each stream ends with its result: when it is told to, or when its holder may not have it any longer."""

    def __init__(self, bus: SubscriptionBus, watch: Watch, share: float) -> None:
        """`share`: the part of all streams that one caller may hold."""
        self._bus = bus
        self._watch = watch
        self._shares = Shares(MOST_STREAMS, share)
        self._open: set[ListenHandler] = set()

    async def serve(
        self,
        ctx: ServerRequestContext[Any, Any],
        params: types.SubscriptionsListenRequestParams,
        needs: frozenset[str],
        caller: str | None,
    ) -> types.SubscriptionsListenResult:
        """Serve one stream to its end.

        Args:
            needs: all scopes of what it tells of.
            caller: whose share it counts in; None: nobody's.

        Raises:
            Overloaded: too many streams are open.
        """
        taken = self._shares.take(caller)
        if taken == "full":
            raise Overloaded("Too many listen streams are open. Retry after 60 s.", retry_after=60)
        if taken == "share":
            text = f"You have as many listen streams open as one caller may have ({self._shares.most_of_one})."
            raise Overloaded(f"{text} Close one, or retry after 60 s.", retry_after=60)
        # One for each stream, as it is the SDK's way to end one.
        handler = ListenHandler(self._bus, max_subscriptions=1)
        self._open.add(handler)
        try:
            with self._watch.holding(current_principal.get(), needs, handler.close) as held:
                session = cast(ServerSession, _Asking(ctx.session, held))
                return await handler(replace(ctx, session=session, params=None), params)
        finally:
            self._open.discard(handler)
            self._shares.release(caller)

    def close(self) -> None:
        """End every stream with its result."""
        for each in list(self._open):
            each.close()


class _Asking:
    """What `ListenHandler` knows of a session. An event that waited for a slow client is asked for when it is written."""

    def __init__(self, session: ServerSession, held: Held) -> None:
        self._session = session
        self._held = held

    async def send_notification(
        self, notification: types.ServerNotification, related_request_id: types.RequestId | None = None
    ) -> None:
        if isinstance(notification, types.SubscriptionsAcknowledgedNotification) or self._held.ask():
            await self._session.send_notification(notification, related_request_id)
