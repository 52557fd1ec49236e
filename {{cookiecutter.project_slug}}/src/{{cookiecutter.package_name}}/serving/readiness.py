"""Whether this process should be sent requests."""

from typing import Any, Literal

import anyio

from ..dependencies import Dependencies

_FRESH_SECONDS = 1.0  # probes stand outside every limit: more of them do not make more checks


class Readiness:
    """`state`: `starting` until every dependency is open, `draining` from the signal on."""

    def __init__(self, dependencies: Dependencies) -> None:
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self._dependencies = dependencies
        self._checking = anyio.Lock()
        self._checks: dict[str, str] = {}
        self._until = 0.0

    def ready(self) -> None:
        """Everything is open."""
        if self.state == "starting":
            self.state = "ready"

    def drain(self) -> None:
        """A signal came."""
        self.state = "draining"

    async def report(self) -> tuple[int, dict[str, Any]]:
        """The HTTP status and body of `/readyz`: 503 with the reason while this process should get nothing."""
        if self.state != "ready":
            return 503, {"status": self.state}
        if not self._dependencies.checked:
            return 200, {"status": "ok"}
        async with self._checking:
            if anyio.current_time() >= self._until:
                self._checks = await self._dependencies.check()
                self._until = anyio.current_time() + _FRESH_SECONDS
        if self.state != "ready":  # the signal came while it was checked
            return 503, {"status": self.state}
        failing = {name for name, found in self._checks.items() if found != "ok"}
        if failing - self._dependencies.optional:
            return 503, {"status": "unavailable", "checks": self._checks}
        return 200, {"status": "degraded" if failing else "ok", "checks": self._checks}
