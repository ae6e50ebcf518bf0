"""`journal`: the write-ahead log of episodes, one partition per `tasks` partition.

The first record with the same (kind, trajectory_id, attempt, key) counts, whoever wrote it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from rollstream.schemas.messages import Message

JournalKind = Literal["start", "effect", "attempt_end", "end", "done", "released"]


class JournalRecord(Message, frozen=True, kw_only=True):
    """One entry. Partition: that of the task. Key: ``trajectory_id``."""

    topic: ClassVar[str] = "journal"

    kind: JournalKind
    trajectory_id: str
    """For a task whose bytes cannot be decoded: its coordinates, ``tasks/<partition>/<offset>``."""
    attempt: int
    key: str
    """``start``: (attempt, n, writer); ``effect``: its path; ``attempt_end``: the path of the effect that failed."""
    writer: str
    """Nonce of the process that wrote it."""
    birth: int | None = None
    """Offset of the attempt's first start; None only in that record itself."""
    task_offset: int = -1
    digest: bytes = b""
    """Digest of the request of an effect."""
    payload: bytes = b""
