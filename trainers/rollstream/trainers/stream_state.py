"""What a stream puts into the trainer's checkpoint, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from rollstream.schemas.errors import SettingsError

FORMAT = 1

Drop = Literal["failed", "partial", "truncated", "overlong", "stale", "zero_variance", "lost", "skipped"]
"""Why a training group is closed and not trained on."""

DROP_COUNTERS: Final[Mapping[Drop, str]] = {
    "failed": "failed_dropped",
    "partial": "partial_dropped",
    "truncated": "truncated_dropped",
    "overlong": "overlong_dropped",
    "stale": "stale_dropped",
    "zero_variance": "zero_variance_dropped",
    "lost": "lost",
    "skipped": "skipped",
}
"""Names in ``Counts`` and ``StreamStats``."""


class Counts(msgspec.Struct, kw_only=True):
    """Counted since the first start of the stream; records read again after a restore are not counted again."""

    consumed: int = 0
    duplicates_dropped: int = 0
    unequal_duplicates: int = 0
    late: int = 0
    undecodable: int = 0
    evaluations: int = 0
    batches: int = 0
    groups_consumed: int = 0
    trajectories_trained: int = 0
    stale_dropped: int = 0
    failed_dropped: int = 0
    partial_dropped: int = 0
    truncated_dropped: int = 0
    overlong_dropped: int = 0
    zero_variance_dropped: int = 0
    lost: int = 0
    skipped: int = 0
    replacements: int = 0
    unneeded: int = 0
    members_excluded: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    members_missing: int = 0
    batches_held: int = 0
    holds_given_up: int = 0
    max_staleness: int = 0
    staleness_sum: int = 0

    @property
    def groups_dropped(self) -> int:
        """Training groups that were closed and not trained on."""
        return sum(self.drops().values())

    def drops(self) -> dict[Drop, int]:
        """Dropped groups by reason."""
        return {drop: getattr(self, name) for drop, name in DROP_COUNTERS.items()}

    def count_drop(self, drop: Drop, groups: int = 1) -> None:
        """So many groups were dropped."""
        setattr(self, DROP_COUNTERS[drop], getattr(self, DROP_COUNTERS[drop]) + groups)

    def copied(self) -> Counts:
        """Counts that go on by themselves."""
        return msgspec.structs.replace(self, members_excluded=dict(self.members_excluded))


class PublishedPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Where the files of a published version are."""

    uri: str
    manifest_sha256: str
    kind: Literal["full", "lora"] = "full"


class PassedOver(msgspec.Struct, frozen=True, kw_only=True):
    """Groups that lie before the place where reading began: emitted then, and not met until all was read as of then."""

    ends: dict[int, int]
    """Per partition, the end then."""
    emitted: dict[str, int]
    """Per run, the groups emitted then."""


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint.

    Attributes:
        topic: full name of the trajectories topic.
        positions: per partition, the offset to read from again.
        read_to: per partition, the offset up to which records are counted.
        marks: per partition, the timestamp (ms) of the record before ``read_to``, to know the log by.
        closed: per run, ``[start, end)`` intervals of closed group indices.
        version: of the policy; ``lineage`` is what it was published under, ``forks`` how that lineage came to be.
        policy: files of that version; None if none was published.
        version_step: by how much the last policy raised the version.
        version_groups: groups delivered from the policy before to that one; 0: not known.
        groups_since: groups delivered since.
        limit_marks: (groups that might be emitted, version from which on) of what open groups still need.
        heard_marks: per run, (groups heard to be emitted, version then).
        passed_over: what a ``seek`` leaves out, while that is not settled.
    """

    topic: str
    run_id: str | None
    positions: dict[int, int]
    read_to: dict[int, int]
    closed: dict[str, list[tuple[int, int]]]
    lineage: int
    version: int
    forks: list[tuple[int, int]]
    policy: PublishedPolicy | None
    counts: Counts
    marks: dict[int, int] = msgspec.field(default_factory=dict[int, int])
    version_step: int = 1
    version_groups: int = 0
    groups_since: int = 0
    limit_marks: list[tuple[int, int]] = msgspec.field(default_factory=list[tuple[int, int]])
    heard_marks: dict[str, list[tuple[int, int]]] = msgspec.field(default_factory=dict[str, list[tuple[int, int]]])
    passed_over: PassedOver | None = None
    format: int = FORMAT

    def starts(self, beginnings: Mapping[int, int]) -> dict[int, int]:
        """Where to begin to read: at the positions, or one record before where that one is the first to have a mark."""
        return {
            partition: position - 1
            if position == self.read_to[partition]
            and partition in self.marks
            and position > beginnings.get(partition, 0)
            else position
            for partition, position in self.positions.items()
        }

    def is_of_other_log(self, partition: int, offset: int, timestamp_ms: int) -> bool:
        """Whether this record shows that the topic was made anew since the checkpoint."""
        return (
            partition in self.marks and offset == self.read_to[partition] - 1 and timestamp_ms != self.marks[partition]
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers: fit for ``torch.save``, JSON and pickle."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], *, topic: str, run_id: str | None) -> StreamState:
        """Check a state dict against the stream that is to go on from it.

        Raises:
            SettingsError: it is no such dict, or it belongs to another topic or run.
        """
        try:
            restored = msgspec.convert(dict(state), cls, strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"this is not a state_dict() of a trajectory stream: {error}") from error
        if restored.format != FORMAT:
            raise SettingsError(f"state_dict() has format {restored.format}, this version reads {FORMAT}")
        if (restored.topic, restored.run_id) != (topic, run_id):
            raise SettingsError(
                f"the checkpoint is of topic {restored.topic!r} and run {restored.run_id!r}, the stream reads "
                f"{topic!r} and {run_id!r}; use the same prefix and run_id, or start without a checkpoint"
            )
        return restored


@dataclass(frozen=True, slots=True)
class StreamStats:
    """What a stream has done since its first start, and where it is. Drops count groups, the others records.

    Attributes:
        consumed: trajectories taken in, each id once, evaluations included.
        duplicates_dropped: further records of a trajectory already there, or of a closed group.
        unequal_duplicates: those among them that differ from the first record while that is still held.
        late: trajectories that came after their group had closed without them.
        undecodable: records that became dead letters.
        evaluations: trajectories of evaluation tasks.
        groups_consumed: groups delivered in batches.
        stale_dropped: groups with a trajectory older than ``max_staleness``.
        failed_dropped: groups with too few trainable members.
        partial_dropped: groups that lacked a trainable member, with ``partial_groups="drop"``.
        truncated_dropped: groups with a truncated member (``truncated="drop_group"``), or with too few members that are
            not (``"drop_member"``).
        overlong_dropped: groups with too few members within ``max_sample_tokens``.
        zero_variance_dropped: groups whose members all had the same reward.
        lost: groups of which nothing arrived before their deadline.
        skipped: groups that ``seek`` passed over.
        replacements: trajectories that took the place of a failed or missing member.
        unneeded: replacements of members that had become trainable meanwhile.
        members_excluded: members of closed groups that were set aside, by reason.
        members_missing: members that had not arrived when their group was closed; without those of lost groups.
        batches_held: batches that were held back for slow groups.
        holds_given_up: those among them that were let go because ``buffer_bytes`` were full.
        max_staleness: greatest age of a delivered trajectory, in policy versions.
        mean_staleness: mean over delivered trajectories; 0.0 while there is none.
        groups_open: groups that wait for members now.
        groups_ready: complete groups that wait for a batch now.
        buffered_bytes: memory of both, estimated.
        drops: dropped groups by reason, all of them.
        retention_left: share of the retention of `trajectories` that is left to the oldest record still needed, by the
            trainer or by its newest checkpoint, 0.0 … 1.0; None: nothing is at stake, or it is not known yet.
    """

    consumed: int
    duplicates_dropped: int
    unequal_duplicates: int
    late: int
    undecodable: int
    evaluations: int
    batches: int
    groups_consumed: int
    trajectories_trained: int
    stale_dropped: int
    failed_dropped: int
    partial_dropped: int
    truncated_dropped: int
    overlong_dropped: int
    zero_variance_dropped: int
    lost: int
    skipped: int
    replacements: int
    unneeded: int
    members_excluded: Mapping[str, int]
    members_missing: int
    batches_held: int
    holds_given_up: int
    max_staleness: int
    mean_staleness: float
    groups_open: int
    groups_ready: int
    buffered_bytes: int
    version: int
    lineage: int
    emit_limit: int
    drops: Mapping[Drop, int] = field(default_factory=dict[Drop, int])
    retention_left: float | None = None

    @property
    def groups_dropped(self) -> int:
        """Training groups that were closed and not trained on."""
        return sum(self.drops.values())
