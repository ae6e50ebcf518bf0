"""A connection that has closed a moment ago is told as what it is.

uvloop refuses to write to a closed transport with a RuntimeError, where asyncio's own loop says nothing. aiokafka is
prepared for an OSError there: anything else ends a producer for good, and a commit ends the process. It happens to
processes that wake from a freeze.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

_send = AIOKafkaConnection.send


def _send_or_say_broken(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
    try:
        return _send(self, request, expect_response)
    except RuntimeError as error:
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: {error}") from error


def tell_closed_connections() -> None:
    """From now on every client of this process raises KafkaConnectionError there. Safe to repeat."""
    AIOKafkaConnection.send = _send_or_say_broken
