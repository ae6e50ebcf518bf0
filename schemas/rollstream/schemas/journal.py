"""`journal`: the write-ahead log of episodes, one partition per `tasks` partition.

The first record with the same (kind, trajectory_id, attempt, key) counts, whoever wrote it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from rollstream.schemas.messages import Message

JournalKind = Literal["start", "effect", "attempt_end", "end", "done", "released"]


class JournalRecord(Message, frozen=True, kw_only=True):
    """One entry. Partition: that of the task. Key: ``trajectory_id``."""

    topic: ClassVar[str] = "journal"

    kind: JournalKind
    """``start`` of an attempt, or its resumption elsewhere; ``effect``: what one step of the agent resulted in;
    ``attempt_end``: the attempt failed; ``end``: how the task ends, decided before anybody hears of it; ``done``:
    everybody has; ``released``: a start whose worker left in peace."""
    trajectory_id: str
    """As the header of the task names it; without that header the task's place, ``tasks/<partition>/<offset>``."""
    attempt: int
    """1 for the first."""
    key: str
    """``start`` and ``released``: attempt/n/writer; ``effect``: its path; ``attempt_end``: the path of the effect that
    failed, or empty."""
    writer: str
    """Nonce of the process that wrote it."""
    birth: int | None = None
    """Offset of the attempt's first start; null in a start only."""
    task_offset: int = -1
    """Offset of the task in its partition; in a start."""
    digest: bytes = b""
    """Digest of the request of an effect."""
    payload: bytes = b""
    """``effect``: its result; ``attempt_end``: an `AttemptFailure`; ``end``: a `TerminalRecord`; ``start``: a
    `StartFacts`. Each as msgpack."""


class StartFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of a ``start``."""

    started_at: float
    """Unix seconds."""


class AttemptFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of an ``attempt_end``."""

    kind: Literal["infrastructure", "data"]
    type: str
    message: str
    stack: str = ""
    """Its last part, for the dead letter."""


class TerminalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Payload of an ``end``: the record of the trajectory as it will be published, however often."""

    value: bytes | None
    """None: there is nothing to publish, the task's bytes cannot be read."""
    headers: list[tuple[str, bytes]]
    key: str
    partition: int
    status: str
