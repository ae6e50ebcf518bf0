"""Settings of a trainer's stream."""

from __future__ import annotations

from typing import Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollstream.schemas.errors import SettingsError
from rollstream.transport.settings import KafkaSettings

TrainedTopic = Literal["trajectories", "scored-trajectories"]


class TrainerSettings(BaseModel):
    """How trajectories become batches, and how far producers may run ahead."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    topic: TrainedTopic = "trajectories"
    """What is read: as rollout workers made them, or `scored-trajectories`, where scorers have changed the rewards."""
    run_id: str | None = None
    """Train on this run only; None: on every run in the topic."""
    groups_per_batch: int = Field(default=16, ge=1)
    """Groups in a batch; only the last one of a run may have fewer."""
    pipeline_depth: int = Field(default=1, ge=0)
    """Batches that may be under way beyond the one the trainer waits for. More: faster and staler."""
    max_staleness: int | None = Field(default=4, ge=0)
    """Groups with an older trajectory, in policy versions, are dropped; None: nothing is too old."""
    stale: Literal["hold", "drop"] = "hold"
    """``hold``: a batch is held back while it would make a slow group too old. ``drop``: slow groups are dropped."""
    min_members: int = Field(default=2, ge=1)
    """Groups with fewer trainable members are dropped as failed. At most the size of the group is asked for."""
    partial_groups: Literal["drop", "keep", "backfill"] = "keep"
    """Groups of which not all members are trainable. ``drop``: dropped. ``keep``: trained on with ``min_members``.
    ``backfill``: the producer is asked for further rollouts of members that failed or never came, then as ``keep``."""
    backfill_rounds: int = Field(default=1, ge=1)
    """How often a member is replaced at most, with ``partial_groups="backfill"``; each round has its own deadline."""
    truncated: Literal["keep", "drop_member", "drop_group"] = "keep"
    """Members whose episode was cut at a limit: trained on, set aside, or a reason to drop the whole group."""
    max_sample_tokens: int | None = Field(default=None, ge=2)
    """Members with a sample of more tokens, prompt and response together, are set aside; None: as long as they are."""
    needs_reward: bool = True
    """Whether a member without a reward is not trainable. False: the trainer scores by itself."""
    drop_zero_variance: bool = False
    """Drop groups whose trainable members all have the same reward: group-relative advantages are zero there."""
    buffer_bytes: int = Field(default=2 * 1024**3, ge=1)
    """Memory for open and ready groups. When it is full, no batch is held back any longer; while too few groups for one
    are complete, records are read one at a time."""
    group_deadline_s: float = Field(default=1800.0, gt=0)
    """A group that is not complete this long after it is known closes with the members that are there."""
    timeout_s: float = Field(default=3600.0, gt=0)
    """Longest wait for one batch."""
    max_batches: int | None = Field(default=None, ge=1)
    """The stream ends after this many batches, those before a checkpoint included; None: with the producer."""
    policy_store: str | None = None
    """Where published policies are copied to, a path or an fsspec URL; None: they stay where they were saved."""
    is_observer: bool = False
    """Read beside the trainer: sets no pace, publishes nothing, takes the trainer's policy version as its own."""
    retention_alarm_share: float = Field(default=0.25, ge=0, le=1)
    """Warn when less than this share of the retention is left to a trajectory that is still needed; 0: never."""
    retention_check_s: float = Field(default=30.0, gt=0)
    """Time between two looks at the retention and at the topic itself."""
    trainer_id: str = Field(default="trainer", min_length=1)
    """Name of this reader, in control records, dead letters and its consumer group."""


class StreamOptions(TypedDict, total=False):
    """The fields of ``TrainerSettings`` as keyword arguments; their meaning and defaults are there."""

    topic: TrainedTopic
    run_id: str | None
    groups_per_batch: int
    pipeline_depth: int
    max_staleness: int | None
    stale: Literal["hold", "drop"]
    min_members: int
    partial_groups: Literal["drop", "keep", "backfill"]
    backfill_rounds: int
    truncated: Literal["keep", "drop_member", "drop_group"]
    max_sample_tokens: int | None
    needs_reward: bool
    drop_zero_variance: bool
    buffer_bytes: int
    group_deadline_s: float
    timeout_s: float
    max_batches: int | None
    policy_store: str | None
    is_observer: bool
    retention_alarm_share: float
    retention_check_s: float
    trainer_id: str


def trainer_settings(options: StreamOptions) -> TrainerSettings:
    """Check keyword arguments.

    Raises:
        SettingsError: one is unknown or out of range.
    """
    try:
        return TrainerSettings.model_validate(options)
    except ValidationError as error:
        raise SettingsError(f"options of the trajectory stream: {error}") from error


def kafka_settings(kafka: str | KafkaSettings, prefix: str | None) -> KafkaSettings:
    """An address, or complete settings of Kafka; ``prefix`` replaces theirs.

    Raises:
        SettingsError: the address or the prefix cannot be one.
    """
    try:
        if isinstance(kafka, KafkaSettings):
            return kafka if prefix is None else KafkaSettings.model_validate({**kafka.model_dump(), "prefix": prefix})
        return KafkaSettings(bootstrap=kafka) if prefix is None else KafkaSettings(bootstrap=kafka, prefix=prefix)
    except ValidationError as error:
        raise SettingsError(f"settings of Kafka: {error}") from error
