"""`dead-letters`: every record that could not be processed, whole, with where it was and why."""

from __future__ import annotations

from typing import ClassVar

from rollstream.schemas.messages import Message


class DeadLetter(Message, frozen=True, kw_only=True):
    """The original record and its story. Key: the original key."""

    topic: ClassVar[str] = "dead-letters"

    origin_topic: str
    origin_partition: int
    origin_offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    role: str
    worker_id: str
    error_type: str
    error: str
    stack: str = ""
    attempts: int = 1
    failed_at: float = 0.0
