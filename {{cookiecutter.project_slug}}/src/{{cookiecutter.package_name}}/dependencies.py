"""What tools depend on: opened before the first request, checked for readiness, closed after the last."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from .errors import StartError
from .settings import Settings
from .tooling import Depends

_CHECK_SECONDS = 2.0


class Dependencies:
    """Each dependency once, however many tools want it. `opened`: their values, while they are open."""

    def __init__(self, wanted: Iterable[Depends]) -> None:
        self._wanted = list(dict.fromkeys(wanted))
        self.opened: dict[Depends, Any] = {}
        self.checked = [each for each in self._wanted if each.check is not None]
        self.optional = {each.name for each in self._wanted if each.optional}
        self._failing: set[str] = set()
        self._checks: dict[Depends, asyncio.Task[BaseException | None]] = {}

    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[None]:
        """Open all; close them in the opposite order.

        Raises:
            StartError: one cannot be opened.
        """
        stack = AsyncExitStack()
        try:
            for each in self._wanted:
                try:
                    self.opened[each] = await stack.enter_async_context(each.open(settings))
                except Exception as error:  # noqa: BLE001 - whatever a user's dependency raises
                    structlog.get_logger().error("crash", dependency=each.name, exc_info=error)
                    problem = (
                        f"{each.name}: {type(error).__name__} while this dependency was opened; see the line before"
                    )
                    raise StartError([problem]) from None
            yield
        finally:
            try:
                await stack.aclose()
            except Exception as error:  # noqa: BLE001 - one that cannot be closed is no reason not to stop in order
                structlog.get_logger().error("crash", exc_info=error)

    async def check(self) -> dict[str, str]:
        """Run all checks at once: each dependency's name and `ok`, `failed` or `timeout`.

        A check that cannot be cancelled, as it waits for a thread, is left behind, and not begun anew while it runs.
        """
        for each in self.checked:
            if each not in self._checks or self._checks[each].done():
                self._checks[each] = asyncio.create_task(self._ask(each))
        await asyncio.wait(self._checks.values(), timeout=_CHECK_SECONDS)
        return {each.name: self._judge(each) for each in self.checked}

    async def _ask(self, dependency: Depends) -> BaseException | None:
        assert dependency.check is not None
        try:
            await dependency.check(self.opened[dependency])
        except BaseException as error:  # noqa: BLE001 - whatever a user's check raises, SystemExit too
            return error
        return None

    def _judge(self, dependency: Depends) -> str:
        name, task, failure = dependency.name, self._checks[dependency], None
        if not task.done():
            task.cancel()
            found = "timeout"
        else:
            failure = task.result()
            found = "ok" if failure is None else "timeout" if isinstance(failure, asyncio.CancelledError) else "failed"
        if (found != "ok") != (name in self._failing):
            log = structlog.get_logger()
            if found == "ok":
                self._failing.discard(name)
                log.info("dependency_recovered", dependency=name)
            else:
                self._failing.add(name)
                log.warning("dependency_failing", dependency=name, problem=found, exc_info=failure)
        return found
