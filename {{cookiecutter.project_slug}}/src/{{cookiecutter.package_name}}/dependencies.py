"""What tools depend on: opened before the first request, checked for readiness, closed after the last."""

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
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
        self._failing: set[str] = set()

    @asynccontextmanager
    async def open(self, settings: Settings) -> AsyncIterator[None]:
        """Open all; close them in the opposite order.

        Raises:
            StartError: one cannot be opened.
        """
        async with AsyncExitStack() as stack:
            for each in self._wanted:
                try:
                    self.opened[each] = await stack.enter_async_context(each.open(settings))
                except Exception as error:  # noqa: BLE001 - whatever a user's dependency raises
                    structlog.get_logger().error("crash", exc_info=error)
                    problem = f"{each.name}: {type(error).__name__} while this dependency was opened"
                    raise StartError([problem]) from None
            yield

    async def check(self) -> dict[str, str]:
        """Run all checks at once: each dependency's name and `ok`, `failed` or `timeout`."""
        found: dict[str, str] = {}
        async with anyio.create_task_group() as tasks:
            for each in self.checked:
                tasks.start_soon(self._check, each, found)
        return {each.name: found[each.name] for each in self.checked}

    async def _check(self, dependency: Depends, found: dict[str, str]) -> None:
        assert dependency.check is not None
        name, log = dependency.name, structlog.get_logger()
        found[name] = "timeout"
        failure = None
        with anyio.move_on_after(_CHECK_SECONDS):
            try:
                await dependency.check(self.opened[dependency])
                found[name] = "ok"
            except Exception as error:  # noqa: BLE001 - whatever a user's check raises
                found[name], failure = "failed", error
        if (found[name] != "ok") == (name in self._failing):
            return  # said already
        if found[name] == "ok":
            self._failing.discard(name)
            log.info("dependency_recovered", dependency=name)
        else:
            self._failing.add(name)
            log.warning("dependency_failing", dependency=name, problem=found[name], exc_info=failure)
