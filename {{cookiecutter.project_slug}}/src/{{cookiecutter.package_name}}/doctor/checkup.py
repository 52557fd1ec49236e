"""One run of the checklist, as a table, as JSON, and as what stops a start."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from ..registry import Registry
from ..settings import Settings
from .checks import CHECKS, Check, Deployment, Finding


@dataclass(frozen=True, slots=True)
class Row:
    """One check and what it found. `remedy`: what to change, when it has failed."""

    item: str
    title: str
    found: str
    remedy: str | None

    @property
    def passed(self) -> bool:
        """Whether there is nothing to change."""
        return self.remedy is None


class Checkup:
    """The rows, judged as `production` or `development`."""

    def __init__(self, settings: Settings, registry: Registry, *, as_production: bool = False) -> None:
        """`as_production`: judge so whatever MCP_ENVIRONMENT says."""
        self.judged_as: Literal["production", "development"] = "production" if as_production else settings.environment
        deployment = Deployment(settings, registry)
        self.rows = [self._row(check, deployment) for check in CHECKS]

    @property
    def passed(self) -> bool:
        """Whether every row has."""
        return all(row.passed for row in self.rows)

    @property
    def problems(self) -> list[str]:
        """A line for each row that has failed: what it is, what was found, what to change."""
        return [f"{row.item}: {row.found}; {row.remedy}" for row in self.rows if not row.passed]

    def json(self) -> str:
        """`{"passed", "judged_as", "rows": [{"item", "title", "passed", "found", "remedy" (when failed)}]}`."""
        rows: list[dict[str, Any]] = [
            {"item": row.item, "title": row.title, "passed": row.passed, "found": row.found}
            | ({} if row.remedy is None else {"remedy": row.remedy})
            for row in self.rows
        ]
        return to_json({"passed": self.passed, "judged_as": self.judged_as, "rows": rows}, indent=2).decode() + "\n"

    def table(self, *, symbols: bool, colour: bool) -> str:
        """For people: a line for each row, what to change under it, and a summary."""
        words = {True: "✓" if symbols else "passed", False: "✗" if symbols else "FAILED"}
        shown = {key: f"\x1b[{32 if key else 31}m{word}\x1b[0m" if colour else word for key, word in words.items()}
        width = max(len(row.item) for row in self.rows)
        lines = []
        for row in self.rows:
            lines.append(f"{shown[row.passed]}  {row.item:{width}}  {row.found}")
            if row.remedy is not None:
                lines.append(f"{'':{len(words[False])}}  {'':{width}}  To do: {row.remedy}.")
        failed = sum(not row.passed for row in self.rows)
        lines.append(f"\nJudged as {self.judged_as}: {len(self.rows) - failed} passed, {failed} failed.")
        return "\n".join(lines) + "\n"

    def _row(self, check: Check, deployment: Deployment) -> Row:
        if check.only_http and deployment.settings.transport != "http":
            finding = Finding("only over HTTP")
        elif check.only_production and self.judged_as != "production":
            finding = Finding("only in production")
        else:
            finding = check.judge(deployment)
        title = (check.judge.__doc__ or "").partition("\n")[0].rstrip(".")
        return Row(check.judge.__name__.replace("_", "-"), title, *finding)
