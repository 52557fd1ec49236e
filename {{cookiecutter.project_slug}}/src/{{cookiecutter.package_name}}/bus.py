"""Changes that clients listen to, told to all replicas over the Redis that they share (publish and subscribe)."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self

import anyio
import structlog
from mcp.server.subscriptions import InMemorySubscriptionBus, ServerEvent
from mcp.shared.subscriptions import event_from_wire, event_to_notification
from pydantic_core import from_json, to_json
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from . import NAME
from .settings import Settings

_CHANNEL = f"{NAME}:events"
_GAP = "gap"
"""A message that is no event: some may have been missed."""
_MOST_WAITING = 1000  # events
_SECONDS = 1.0  # for one command
_QUIET_SECONDS = 5.0  # after which Redis is asked whether it is still there
_RETRY_SECONDS = 0.5


class RedisBus(InMemorySubscriptionBus):
    """Tells the listeners of this process at once, and those of the other replicas through Redis.

    Redis keeps nothing for who is not connected. So after an outage `on_gap` is called, in every replica: it is to end
    the listen streams, whose clients then listen anew and fetch what they have missed.
    """

    def __init__(self, url: str) -> None:
        """Connects to nothing yet."""
        super().__init__()
        self.on_gap: Callable[[], None] = lambda: None
        self._url = url
        self._name = os.urandom(6).hex()  # by which it knows its own messages
        self._is_up = False
        self._was_down = False
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(_MOST_WAITING)

    async def publish(self, event: ServerEvent) -> None:
        """Waits for nobody: what Redis cannot take is told as a gap, once it is back."""
        await super().publish(event)
        if self._is_up:
            told = event_to_notification(event, {}).model_dump(mode="json", by_alias=True, exclude_none=True)
            with suppress(asyncio.QueueFull):  # then Redis has not answered for some time, and is about to be given up
                self._waiting.put_nowait(to_json([self._name, told]))

    async def check(self) -> None:
        """Raises ConnectionError: other replicas are not heard now."""
        if not self._is_up:
            raise ConnectionError

    @asynccontextmanager
    async def open(self, _: Settings) -> AsyncIterator[Self]:
        """Stay connected. That Redis cannot be reached stops no start."""
        keeping = asyncio.create_task(self._keep_connected())
        try:
            yield self
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _keep_connected(self) -> None:
        while True:
            try:
                async with (
                    Redis.from_url(self._url, socket_connect_timeout=_SECONDS, retry=Retry(NoBackoff(), 0)) as redis,
                    redis.pubsub(ignore_subscribe_messages=True) as channel,
                ):
                    async with asyncio.timeout(_SECONDS):
                        await channel.subscribe(_CHANNEL)
                        await self._found(redis)
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._send, redis)
                        await self._receive(channel)
            except Exception as error:  # noqa: BLE001 - a wrong name, password or certificate is an outage like any other
                self._lost(error)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _send(self, redis: Redis) -> None:
        while True:
            message = await self._waiting.get()
            async with asyncio.timeout(_SECONDS):
                await redis.publish(_CHANNEL, message)

    async def _receive(self, channel: PubSub) -> None:
        while True:
            message = await channel.get_message(timeout=_QUIET_SECONDS)
            if message is None:  # nothing is said: is it there?
                await channel.ping()
                if await channel.get_message(timeout=_SECONDS) is None:
                    raise TimeoutError
            elif message["type"] == "message":
                await self._hear(message["data"])

    async def _hear(self, data: bytes) -> None:
        try:
            sender, told = from_json(data)
            event = None if told == _GAP else event_from_wire(told["method"], told.get("params"))
        except (ValueError, TypeError, LookupError, AttributeError):
            structlog.get_logger().warning("event_unreadable")
            return
        if sender == self._name:
            return
        if event is not None:
            await super().publish(event)
        elif told == _GAP:
            self.on_gap()

    async def _found(self, redis: Redis) -> None:
        self._is_up = True
        if self._was_down:
            self._was_down = False
            structlog.get_logger().info("event_bus_up")
            self.on_gap()
            await redis.publish(_CHANNEL, to_json([self._name, _GAP]))

    def _lost(self, error: Exception) -> None:
        self._is_up = False
        if not self._was_down:
            self._was_down = True
            structlog.get_logger().error("event_bus_down", error=type(error).__name__)
        while not self._waiting.empty():
            self._waiting.get_nowait()
