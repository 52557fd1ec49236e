"""What is measured: counted in plain objects on the way, and given its Prometheus form only when it is asked for."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

HTTP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Seconds: what OpenTelemetry's convention advises for `http.client.request.duration`."""
OPERATION_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds: what OpenTelemetry's convention advises for `mcp.server.operation.duration`."""
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds that the event loop may be late."""


class Histogram:
    """How many values fell into each bucket, and what they come to together."""

    __slots__ = ("buckets", "counts", "sum")

    def __init__(self, buckets: Sequence[float]) -> None:
        """`buckets`: their upper bounds, ascending, each inside its own bucket; what exceeds the last has one more."""
        self.buckets = tuple(buckets)
        self.counts = [0] * (len(self.buckets) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.buckets, seconds)] += 1
        self.sum += seconds


@dataclass(frozen=True, slots=True)
class Measure:
    """One value now. Measures of one name have the same help, kind and label names.

    name: as Prometheus names it, with its unit; a counter's ends in `_total`.
    labels: only values that the server itself knows beforehand, never what a caller or an upstream sent.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: dict[str, str]
    value: float | Histogram


@runtime_checkable
class Measured(Protocol):
    """What keeps measures of its own; a dependency that has this method is asked at every scrape."""

    def measures(self) -> Iterable[Measure]:
        """Its values now."""


class Operations:
    """The requests of one server. `running`: how many of each method have begun and not ended."""

    def __init__(self) -> None:
        self.running: defaultdict[str, int] = defaultdict(int)
        self._ended: defaultdict[tuple[str, str, str], Histogram] = defaultdict(lambda: Histogram(OPERATION_BUCKETS))

    def ended(self, method: str, tool: str, outcome: str, seconds: float) -> None:
        """Count one that has ended. `tool`: empty if it is for none."""
        self._ended[method, tool, outcome].observe(seconds)

    def measures(self) -> Iterator[Measure]:
        """How many there are, and how they ended."""
        name, text = "mcp_server_operation_duration_seconds", "How long requests took, by how they ended."
        for (method, tool, outcome), taken in self._ended.items():
            yield Measure(name, text, "histogram", {"method": method, "tool": tool, "outcome": outcome}, taken)
        for method, number in self.running.items():
            text = "Requests that have begun and not ended."
            yield Measure("mcp_server_operations_in_flight", text, "gauge", {"method": method}, number)
