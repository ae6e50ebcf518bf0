"""The W3C ``traceparent`` header, so that a trace follows a task through every topic. Costs nothing without an SDK."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def trace_headers() -> list[tuple[str, bytes]]:
    """Headers of the current span; none when there is no span."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return [(name, value.encode()) for name, value in carrier.items()]


def trace_context(headers: Iterable[tuple[str, bytes]]) -> Context:
    """The context a record was sent in, as the parent of a span; the current one without a valid header."""
    carrier = {name: value.decode("ascii", errors="replace") for name, value in headers if name in _PROPAGATOR.fields}
    return _PROPAGATOR.extract(carrier)
