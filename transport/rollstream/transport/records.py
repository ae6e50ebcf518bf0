"""Consumed Kafka records: their type, and the way from bytes to a message."""

from __future__ import annotations

from typing import TypeVar

from aiokafka import ConsumerRecord

from rollstream.schemas.codec import decode
from rollstream.schemas.messages import Message

Record = ConsumerRecord[bytes | None, bytes | None]
M = TypeVar("M", bound=Message)


def record_headers(record: Record) -> list[tuple[str, bytes]]:
    """The headers; a null value, which Kafka allows, reads as empty."""
    return [(name, value or b"") for name, value in record.headers]


def record_place(record: Record) -> str:
    """Where it lies, for logs and errors: ``topic/partition/offset``."""
    return f"{record.topic}/{record.partition}/{record.offset}"


def decode_record(record: Record, *types: type[M]) -> M:
    """Decode as one of ``types``, chosen by the ``schema`` header.

    Raises:
        InvalidMessageError: the bytes are no such message, and will never be: bury the record.
    """
    return decode(record.value, record_headers(record), *types)
