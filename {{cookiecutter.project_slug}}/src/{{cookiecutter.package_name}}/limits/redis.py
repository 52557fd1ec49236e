"""Limits in Redis: what all replicas of this server share.

Calls do not take turns on connections: they wait side by side on one, which is kept open beside them, and replies come in
the order of the questions. So a call that is cancelled leaves no half-read connection to the next one, no call pays for
connecting, and while Redis does not answer no call waits for it, but one task alone.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Self

import anyio
import structlog
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.exceptions import NoScriptError, RedisError, ResponseError

from .. import NAME
from ..errors import StartError
from ..settings import Settings
from .store import StoreDown

_ANSWER_SECONDS = 0.04
_TURNS, _TURN_SECONDS = 5, 0.002  # then, up to 50 ms; see `_late`
_CONNECT_SECONDS = 1.0
_RETRY_SECONDS = 0.5  # after a connection that could not be made
_AGAIN_SECONDS = 0.01  # after one that was made, and lost

# `Gcra.take` in Redis, on its clock. Whole microseconds: they fit a Lua number, and lose nothing as text.
# A time further off than a burst is from before the clock was set back, or the limit changed.
_SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local whole_at = tonumber(redis.call('GET', KEYS[1]) or now)
local after = math.min(math.max(whole_at, now), now + burst) + cost
local wait = after - now - burst
if wait > 0 then
  return wait
end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
return 0
"""
_EVALSHA = ("EVALSHA", sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest())
_EVAL = ("EVAL", _SCRIPT)
_NOBODY = ("check", 1, 1_000_000)
"""Key, cost and burst of a client that is let through always."""


@dataclass(slots=True, eq=False)
class _Question:
    """One run of the script. `reply`: what it returned, in microseconds, or why that is not known."""

    arguments: tuple[str, int, int]
    reply: asyncio.Future[int | Exception]
    script: tuple[str, str] = _EVALSHA


class RedisStore:
    """Limits of all servers of this name that use the same Redis. `failures`: calls that could not be checked, ever."""

    def __init__(self, url: str, per_minute: int, burst: int) -> None:
        """Connects to nothing yet.

        Raises:
            StartError: `url` is no address of a Redis.
        """
        self._url = url
        self._new_connection()
        self._microseconds = max(1, round(60_000_000 / per_minute))  # for a cost of 1
        self._burst = burst * self._microseconds
        self.failures = 0
        self._failures_before = 0
        self._is_down = False
        self._tried = asyncio.Event()
        self._asked = asyncio.Event()
        self._to_send: list[_Question] = []
        self._sent: deque[_Question] = deque()
        self._talk: anyio.CancelScope | None = None

    async def take(self, key: str, cost: int) -> float:
        """As `Store.take`; the answer is there within 50 ms."""
        try:
            return await self._ask((key, cost * self._microseconds, self._burst)) / 1_000_000
        except StoreDown:
            self.failures += 1
            raise

    async def once(self, key: str, seconds: int) -> bool:
        """As `Store.once`: a limit whose burst is spent at once."""
        whole = seconds * 1_000_000
        return await self._ask((f"once:{key}", whole, whole)) == 0

    async def check(self) -> None:
        """Find out whether limits can be kept now.

        Raises:
            StoreDown: they cannot.
        """
        await self._ask(_NOBODY)

    @asynccontextmanager
    async def open(self, _: Settings) -> AsyncIterator[Self]:
        """Stay connected. That Redis cannot be reached stops no start."""
        keeping = asyncio.create_task(self._keep_connected())
        try:
            await self._tried.wait()
            yield self
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])

    async def _ask(self, arguments: tuple[str, int, int]) -> int:
        if self._is_down:
            raise StoreDown
        loop = asyncio.get_running_loop()
        question = _Question(arguments, loop.create_future())
        timer = loop.call_later(_ANSWER_SECONDS, self._late, question)
        self._to_send.append(question)
        self._asked.set()
        try:
            reply = await question.reply
        finally:
            timer.cancel()
        if isinstance(reply, Exception):
            raise StoreDown
        return reply

    def _late(self, question: _Question, turns: int = _TURNS) -> None:
        """Give Redis up, but not when it was this process that was held up: some turns of the loop send and receive."""
        if question.reply.done():
            return
        if turns:
            asyncio.get_running_loop().call_later(_TURN_SECONDS, self._late, question, turns - 1)
        else:
            error = TimeoutError()
            question.reply.set_result(error)
            self._give_up(error)

    async def _keep_connected(self) -> None:
        while True:
            connection = self._new_connection()
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    await self._try(connection)
            except Exception as error:  # noqa: BLE001 - a wrong name, password or certificate is an outage like any other
                self._give_up(error)
                pause = _RETRY_SECONDS
            else:
                self._found()
                await self._talk_over(connection)
                pause = _AGAIN_SECONDS
            finally:
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)

    async def _try(self, connection: AbstractConnection) -> None:
        """Connect, and run the script as calls will: that a port is open says little."""
        await connection.send_command(*_command(_EVAL, _NOBODY))
        await connection.read_response()

    async def _talk_over(self, connection: AbstractConnection) -> None:
        """Send and receive until the connection is of no more use. What has no reply by then is sent over the next one:
        that a call is charged twice is rare, and better than not at all."""
        async with anyio.create_task_group() as tasks:
            self._talk = tasks.cancel_scope
            tasks.start_soon(self._guarded, self._send, connection)
            tasks.start_soon(self._guarded, self._receive, connection)
        self._talk = None
        self._to_send[:0] = self._sent
        self._sent.clear()
        self._asked.set()

    async def _guarded(
        self, half: Callable[[AbstractConnection], Awaitable[None]], connection: AbstractConnection
    ) -> None:
        """Run one half of the talk, and end both when it fails."""
        try:
            await half(connection)
        except ResponseError as error:
            self._give_up(error)
        except Exception:  # noqa: BLE001 - whatever it was, the next connection shows whether there is an outage
            self._end_talk()

    async def _send(self, connection: AbstractConnection) -> None:
        while await self._asked.wait():
            self._asked.clear()
            questions = [each for each in self._to_send if not each.reply.done()]
            self._to_send.clear()
            if questions:
                self._sent.extend(questions)
                commands = (_command(each.script, each.arguments) for each in questions)
                await connection.send_packed_command(connection.pack_commands(commands))

    async def _receive(self, connection: AbstractConnection) -> None:
        while True:
            try:
                reply: int = await connection.read_response()
            except NoScriptError:  # somebody has emptied Redis' cache of scripts
                question = self._sent.popleft()
                question.script = _EVAL
                self._to_send.append(question)
                self._asked.set()
            else:
                question = self._sent.popleft()
                if not question.reply.done():
                    question.reply.set_result(reply)

    def _found(self) -> None:
        self._tried.set()
        if self._is_down:
            self._is_down = False
            failures = self.failures - self._failures_before
            structlog.get_logger().info("rate_limit_store_up", failures=failures)

    def _give_up(self, error: Exception) -> None:
        """Let nobody wait until there is a new connection."""
        self._tried.set()
        self._end_talk()
        if not self._is_down:
            self._is_down = True
            self._failures_before = self.failures
            structlog.get_logger().error("rate_limit_store_down", error=type(error).__name__)
        for question in (*self._sent, *self._to_send):
            if not question.reply.done():
                question.reply.set_result(error)
        self._sent.clear()
        self._to_send.clear()

    def _end_talk(self) -> None:
        if self._talk is not None:
            self._talk.cancel()

    def _new_connection(self) -> AbstractConnection:
        """Speaks RESP2 without a greeting, has no timeouts of its own, and retries nothing."""
        try:
            options: dict[str, Any] = {**parse_url(self._url)}
            if not (options.get("host") or options.get("path")):
                raise ValueError  # redis-py would take this machine for it
            kind = options.pop("connection_class", Connection)
            ours = {"protocol": 2, "driver_info": None, "socket_timeout": None, "socket_connect_timeout": None}
            connection: AbstractConnection = kind(**(options | ours))
        except (TypeError, ValueError, RedisError):
            problem = "redis-py cannot read it; write redis://host:6379/0, or rediss:// for TLS"
            raise StartError([f"MCP_RATE_LIMIT_STORE: {problem}"]) from None
        return connection


def _command(script: tuple[str, str], arguments: tuple[str, int, int]) -> tuple[str | int, ...]:
    key, cost, burst = arguments
    return *script, 1, f"{NAME}:limit:{key}", cost, burst
