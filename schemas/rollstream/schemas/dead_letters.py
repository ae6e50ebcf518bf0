"""`dead-letters`: every record that could not be processed, whole, with where it was and why; and what became of it."""

from __future__ import annotations

from typing import ClassVar, Literal

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
    bytes_missing: int = 0
    """Of value, headers and key, where the whole did not fit into a record; the end of the value is left out first."""


class DeadLetterResolution(Message, frozen=True, kw_only=True):
    """What was done with letters. Partition 0, so that all of them have one order. Key: the first of the letters."""

    topic: ClassVar[str] = "dead-letters"

    state: Literal["dropped", "replaying", "replayed"]
    """``replaying``: this is how the tasks in these letters are sent again, now and whenever it must be repeated; it
    counts only if no earlier plan names one of them. ``replayed``: they are sent. ``dropped``: never mind them."""
    letters: list[str]
    """Places of the original records: ``<full name of topic>/<partition>/<offset>``."""
    run_id: str = ""
    """``replaying``: the run of the new tasks."""
    group_size: int = 0
    """``replaying``: letter number i becomes member ``i % group_size`` of group ``i // group_size`` of the run."""
    resolved_at: float = 0.0
    resolved_by: str = ""
