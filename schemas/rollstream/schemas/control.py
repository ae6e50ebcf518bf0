"""`control`: small facts everybody follows; compacted, so the newest record per key is always there."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from rollstream.schemas.messages import Message


class PolicyVersion(Message, frozen=True, kw_only=True):
    """New weights are ready. Key: ``policy``. Newer = greater (lineage, version)."""

    topic: ClassVar[str] = "control"

    version: int
    """The trainer's optimizer step."""
    lineage: int
    """Control offset of the ``TrainerStart`` of the trainer that made it."""
    uri: str
    """Directory with the files and ``manifest.json``; any fsspec URL or a local path."""
    manifest_sha256: str
    published_at: float = 0.0
    model: str = ""
    kind: Literal["full", "lora"] = "full"
    """``lora``: a PEFT adapter on the model that the engine was started with."""


class PolicyLease(Message, frozen=True, kw_only=True):
    """Somebody needs the files of a policy until then: collection leaves them. Key: ``policy-lease/<holder>``."""

    topic: ClassVar[str] = "control"

    holder: str
    lineage: int
    version: int
    manifest_sha256: str
    """Tells which files: a policy announced again under another lineage has the same ones."""
    until: float
    """Unix seconds; renewed while it is needed, 0 when it no longer is."""


class TrainerStart(Message, frozen=True, kw_only=True):
    """A trainer began; its offset is the lineage of everything it publishes. Key: ``trainer-start/<trainer_id>``."""

    topic: ClassVar[str] = "control"

    trainer_id: str
    parent_lineage: int | None = None
    """Lineage and version of the checkpoint it was restored from; None for a fresh start."""
    parent_version: int | None = None
    started_at: float = 0.0


class TrainerProgress(Message, frozen=True, kw_only=True):
    """How far the trainer is and how much may be emitted. Key: ``trainer-progress``."""

    topic: ClassVar[str] = "control"

    trainer_id: str
    lineage: int
    version: int
    groups_consumed: int
    groups_dropped: int
    emit_limit: int | None
    """Producers wait while the groups they have emitted together reach it; None: no limit."""
    updated_at: float = 0.0
    dropped_for: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """``groups_dropped`` by reason."""


class ProducerProgress(Message, frozen=True, kw_only=True):
    """How many groups a producer has emitted. Key: ``producer/<run_id>``."""

    topic: ClassVar[str] = "control"

    run_id: str
    groups_emitted: int
    """Group indices 0 … groups_emitted - 1 are acknowledged."""
    group_size: int
    is_finished: bool = False
    updated_at: float = 0.0
    is_train: bool = True
    """False: an evaluation run; its groups take no place under ``emit_limit``."""
    fingerprints: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Digest per option and of the data: a run is continued only under the same ones."""
    start_offsets: list[int] = msgspec.field(default_factory=list[int])
    """Per partition of ``tasks``: no task of the run lies below it. Empty: unknown."""
    groups_reserved: int = 0
    """Groups below this index take places under ``emit_limit``, emitted or not yet; never lowered. 0: those emitted."""
    reserved_from: int = 0
    """Where the newest claim begins: groups below it were within the limit before."""
    reserved_at: int | None = None
    """Offset on ``control`` of the record that made the newest claim: its place in the queue. None: this record's."""


class Pause(Message, frozen=True, kw_only=True):
    """Producers stop emitting while it holds. Key: ``pause``."""

    topic: ClassVar[str] = "control"

    is_paused: bool
    reason: str = ""


class WantedMember(msgspec.Struct, frozen=True, kw_only=True):
    """A member of a group whose place is to be filled by another rollout of the same prompt."""

    group_index: int
    member_index: int
    replacement: int
    """From 1: the how-many-th attempt to fill the place."""


class BackfillWanted(Message, frozen=True, kw_only=True):
    """All replacements that a trainer wants of a run now. Key: ``backfill/<run_id>``; the newest record holds.

    The run's producer emits each wanted task once: same group, prompt and partition, an id of its own.
    """

    topic: ClassVar[str] = "control"

    run_id: str
    members: list[WantedMember]
    """At most 4096, each (group_index, member_index) once; empty: nothing is wanted any more."""
    updated_at: float = 0.0


class HeldPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy whose files a worker needs."""

    lineage: int
    version: int
    manifest_sha256: str = ""
    """Tells which files; empty: the model as the engine started, which has none."""


class WorkerStatus(Message, frozen=True, kw_only=True):
    """A worker's own word on what it does, every few seconds. Key: ``worker/<worker_id>``; final one: ``stopped``."""

    topic: ClassVar[str] = "control"

    worker_id: str
    role: Literal["rollout-worker", "tool-worker", "trainer", "producer", "scorer", "archiver"]
    state: Literal["starting", "running", "draining", "stopped"]
    running: int = 0
    """Episodes, tool calls or scorings running now."""
    finished: int = 0
    """Episodes, tool calls or trajectories finished since it started."""
    policy_version: int | None = None
    """With ``lineage``: the weights its engine draws tokens with."""
    lineage: int | None = None
    held_policies: list[HeldPolicy] = msgspec.field(default_factory=list[HeldPolicy])
    """Whose files it needs beside those: of pinned episodes that run or wait, of adapters in its engine. Bounded."""
    interval_s: float = 5.0
    """Silent for three intervals: presumed dead."""
    updated_at: float = 0.0
    stats: dict[str, float] = msgspec.field(default_factory=dict[str, float])


ControlMessage = (
    PolicyVersion
    | PolicyLease
    | TrainerStart
    | TrainerProgress
    | ProducerProgress
    | Pause
    | BackfillWanted
    | WorkerStatus
)
