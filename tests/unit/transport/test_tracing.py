"""The traceparent header."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from rollstream.transport.tracing import trace_context, trace_headers

SPAN = SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def test_without_a_span_there_are_no_headers() -> None:
    assert trace_headers() == []


def test_a_trace_goes_on_behind_a_record() -> None:
    with trace.use_span(NonRecordingSpan(SPAN)):
        headers = trace_headers()

    assert dict(headers)["traceparent"] == b"00-" + b"abc".rjust(32, b"0") + b"-" + b"def".rjust(16, b"0") + b"-01"
    behind = trace.get_current_span(trace_context(headers)).get_span_context()
    assert (behind.trace_id, behind.span_id, behind.is_remote) == (SPAN.trace_id, SPAN.span_id, True)


@pytest.mark.parametrize("value", [b"", b"nonsense", b"\xff\xfe", b"00-0-0-01"])
def test_a_header_that_is_no_trace_begins_none(value: bytes) -> None:
    context = trace_context([("schema", b"X"), ("traceparent", value)])

    assert not trace.get_current_span(context).get_span_context().is_valid
