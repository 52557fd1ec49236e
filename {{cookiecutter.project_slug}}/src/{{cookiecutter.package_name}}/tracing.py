"""Traces for OpenTelemetry: the spans of this server, and of its tools, on their way to a collector.

Everything is configured by OpenTelemetry's own variables, and exported as OTLP over HTTP, in batches, by a thread.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from uuid import uuid4

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from . import NAME
from .errors import StartError
from .settings import forget_exporter_headers
from .spans import current_tracer


class Traces:
    """Exports spans from now on: those of this server, and whatever else uses OpenTelemetry's API."""

    def __init__(self) -> None:
        """
        Raises:
            StartError: a variable has a value that OpenTelemetry does not take.
        """
        version = metadata.version(NAME)
        own = Resource({"service.name": NAME, "service.version": version, "service.instance.id": str(uuid4())})
        try:
            exporter = BatchSpanProcessor(_Exporter(OTLPSpanExporter()))
            resource = Resource.create().merge(own).merge(OTELResourceDetector().detect())  # whose word is last
            self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        except ValueError:  # quotes the value
            raise StartError(["OTEL_*: one of these variables has a value that OpenTelemetry does not take"]) from None
        forget_exporter_headers()
        self._provider.add_span_processor(exporter)
        trace.set_tracer_provider(self._provider)
        current_tracer.set(self._provider.get_tracer(NAME, version))

    async def flush(self, seconds: float) -> None:
        """Send what has not been sent, for so long at most; nothing is exported afterwards."""
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._provider.shutdown), seconds)


class _Exporter(SpanExporter):
    """Says once that the collector takes nothing, and once that it does again: the library has a line for each try."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self._is_well = True
        for library in ("opentelemetry.exporter", "opentelemetry.sdk._shared_internal"):
            logging.getLogger(library).setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """As `SpanExporter`; called in the exporter's thread."""
        result = self._inner.export(spans)
        was_well, self._is_well = self._is_well, result is SpanExportResult.SUCCESS
        log = structlog.get_logger()
        if was_well and not self._is_well:
            log.warning("traces_not_exported", problem="the collector does not take them; those of this time are lost")
        elif self._is_well and not was_well:
            log.info("traces_exported_again")
        return result

    def shutdown(self) -> None:
        """As `SpanExporter`."""
        self._inner.shutdown()
