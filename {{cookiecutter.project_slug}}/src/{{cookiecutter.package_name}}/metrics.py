"""Metrics for Prometheus, on a port of their own: what is counted elsewhere becomes text when it is asked for."""

import asyncio
import platform
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import metadata
from ipaddress import ip_address
from itertools import accumulate
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from pydantic_core import to_json

from . import NAME
from .guards.request_log import current_operations
from .measures import Histogram, Measure, Measured, Operations
from .server import Application
from .serving.lifecycle import Serving
from .serving.listener import listen, url_of

_PATH = "/metrics"
_LONGEST_HEAD = 8192  # bytes
_SECONDS = 5.0  # for one exchange, both directions
_MOST_CONNECTIONS = 32  # file descriptors are shared with MCP's clients
_REFUSALS = {
    "400 Bad Request": "Send one HTTP/1.1 request, with one Host.",
    "403 Forbidden": "Pages may not read this. Send no Origin.",
    "404 Not Found": "There is nothing at this path. Metrics are at /metrics.",
    "405 Method Not Allowed": "This path is for GET.",
    "421 Misdirected Request": "Metrics are not read by this Host. Use the address, or add the name to MCP_ALLOWED_HOSTS.",
}
_STATUSES = ("starting", "ok", "degraded", "unavailable", "draining")  # of `Readiness.report`


class Metrics:
    """The metrics of this process, and the port they are read from."""

    def __init__(self, app: Application, serving: Serving, lag: Histogram) -> None:
        """`lag`: seconds that the event loop was late.

        Raises:
            StartError: the address cannot be listened on.
        """
        settings = app.settings
        self._listener = listen(settings.metrics_host, settings.metrics_port or 0, "MCP_METRICS_HOST, MCP_METRICS_PORT")
        self._app, self._serving = app, serving
        self._operations = Operations()
        self._process = _Process(app, serving, lag)
        self._system = CollectorRegistry()
        ProcessCollector(registry=self._system)  # memory, processor time, file descriptors; on Linux
        names = ("localhost", settings.metrics_host, *map(_name_of, settings.allowed_hosts))
        self._hosts = frozenset(name.lower() for name in names)
        self._writing: asyncio.Task[bytes] | None = None
        self._idle: dict[asyncio.StreamWriter, None] = {}  # nothing is being done for these; oldest first
        self._connections = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Count the requests of this server, and tell what there is to tell to whoever asks."""
        current_operations.set(self._operations)
        server = await asyncio.start_server(self._connected, sock=self._listener, limit=_LONGEST_HEAD)
        structlog.get_logger().info("metrics_listening", url=url_of(self._listener, _PATH))
        try:
            yield
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._connections >= _MOST_CONNECTIONS and not self._give_way():
            writer.transport.abort()
            return
        self._connections += 1
        self._idle[writer] = None
        try:
            async with asyncio.timeout(_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                self._idle.pop(writer, None)
                writer.write(await self._answer(head))
                await writer.drain()
                self._idle[writer] = None
                writer.write_eof()
                while await reader.read(_LONGEST_HEAD):  # unread bytes would make the system take the answer back
                    pass
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # it is slow, has gone, or is no scraper; or the server ends
        finally:
            self._connections -= 1
            self._idle.pop(writer, None)
            writer.transport.abort()

    def _give_way(self) -> bool:
        """End the connection that has been idle the longest; or there is none."""
        oldest = next(iter(self._idle), None)
        if oldest is not None:
            del self._idle[oldest]
            oldest.transport.abort()
        return oldest is not None

    async def _answer(self, head: bytes) -> bytes:
        """The HTTP response to a request with this head; it has no body that matters."""
        line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        method, _, rest = line.partition(" ")
        target, _, version = rest.rpartition(" ")
        headers = [(name.lower(), value.strip(" \t")) for name, _, value in (field.partition(":") for field in fields)]
        hosts = [value for name, value in headers if name == "host"]
        if version not in ("HTTP/1.0", "HTTP/1.1") or len(hosts) > 1 or (version == "HTTP/1.1" and not hosts):
            return _refusal("400 Bad Request")
        if not all(map(self._is_ours, hosts)):
            return _refusal("421 Misdirected Request")
        if any(name == "origin" for name, _ in headers):
            return _refusal("403 Forbidden")
        if target.partition("?")[0] != _PATH:
            return _refusal("404 Not Found")
        if method not in ("GET", "HEAD"):
            return _refusal("405 Method Not Allowed", "Allow: GET, HEAD\r\n")
        return _response("200 OK", CONTENT_TYPE_PLAIN_0_0_4, await self._text(), has_body=method == "GET")

    def _is_ours(self, host: str) -> bool:
        """Whether a Host is an address, or a name of this server's: a page that makes its own name this machine's (DNS
        rebinding) sends that name."""
        name = _name_of(host).lower()
        try:
            ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return name in self._hosts
        return True

    async def _text(self) -> bytes:
        """All there is. Who asks while it is being written gets the same: many who ask at once cost as much as one."""
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await asyncio.shield(self._writing)

    async def _write(self) -> bytes:
        """A histogram takes the library 0.2 ms: between two of them, other calls have a turn."""
        await self._process.refresh()
        families: dict[str, list[bytes]] = {}
        for name, source in list(self._sources()):
            try:
                for measure in list(source.measures()):
                    text, others = generate_latest(_Family(measure)), families.setdefault(measure.name, [])
                    others.append(text.split(b"\n", 2)[2] if others else text)  # help and type once
                    await asyncio.sleep(0)
            except Exception as error:  # noqa: BLE001 - a user's own dependency takes only its own measures with it
                structlog.get_logger().error("crash", dependency=name, exc_info=error)
        return b"".join(part for parts in families.values() for part in parts) + generate_latest(self._system)

    def _sources(self) -> Iterator[tuple[str, Measured]]:
        """What has measures, by name: the server itself, and dependencies that are open."""
        yield NAME, self._operations
        yield NAME, self._process
        for dependency, opened in self._app.dependencies.opened.items():
            if isinstance(opened, Measured):
                yield dependency.name, opened


def _name_of(host: str) -> str:
    """A host without its port."""
    return re.sub(r":[0-9]*$", "", host)


def _refusal(status: str, headers: str = "") -> bytes:
    return _response(status, "application/json", to_json({"error": _REFUSALS[status]}), headers)


def _response(status: str, kind: str, body: bytes, headers: str = "", *, has_body: bool = True) -> bytes:
    headers += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + (body if has_body else b"")


class _Process:
    """What is known of the process beside its requests."""

    def __init__(self, app: Application, serving: Serving, lag: Histogram) -> None:
        self._app, self._serving, self._lag = app, serving, lag
        self._versions = {
            "version": app.mcp.version or "",
            "python_version": platform.python_version(),
            "sdk_version": metadata.version("mcp"),
        }
        self._readiness: dict[str, Any] = {}

    async def refresh(self) -> None:
        """Find out what takes time to know: whether the dependencies are of use."""
        _, self._readiness = await self._serving.readiness.report()

    def measures(self) -> Iterator[Measure]:
        """As `Measured`."""
        yield Measure("mcp_server_build_info", "What is running; always 1.", "gauge", self._versions, 1)
        for status in _STATUSES:
            text, is_it = "1 for what /readyz says, else 0.", status == self._readiness["status"]
            yield Measure("mcp_server_readiness", text, "gauge", {"status": status}, is_it)
        for dependency, found in self._readiness.get("checks", {}).items():
            text = "Whether the check of a dependency passed."
            yield Measure("mcp_server_dependency_up", text, "gauge", {"dependency": dependency}, found == "ok")
        text, failures = "Calls whose rate limit could not be checked.", self._app.limits.failures
        yield Measure("mcp_server_rate_limit_store_errors_total", text, "counter", {}, failures)
        text, threads = "Threads that run on after their call has ended.", len(self._app.threads.abandoned)
        yield Measure("mcp_server_abandoned_threads", text, "gauge", {}, threads)
        text = "How late the event loop is; asked four times a second."
        yield Measure("mcp_server_event_loop_lag_seconds", text, "histogram", {}, self._lag)
        text = "Calls that the end of the drain cut short."
        yield Measure("mcp_server_cut_calls_total", text, "counter", {}, self._serving.cut)
        text = "Calls that get no answer."
        yield Measure("mcp_server_lost_calls_total", text, "counter", {}, self._serving.lost)


class _Family(Collector):
    """One measure, in the words of prometheus_client."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        """As `Collector`."""
        it = self._measure
        value, labels = it.value, list(it.labels.values())
        if isinstance(value, Histogram):
            histogram = HistogramMetricFamily(it.name, it.help, labels=list(it.labels))
            bounds = [*map(str, value.buckets), "+Inf"]
            histogram.add_metric(labels, list(zip(bounds, accumulate(value.counts), strict=True)), value.sum)
            yield histogram
        else:
            family = (CounterMetricFamily if it.kind == "counter" else GaugeMetricFamily)(
                it.name, it.help, labels=list(it.labels)
            )
            family.add_metric(labels, value)
            yield family
