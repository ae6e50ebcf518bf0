"""Settings of an archiver."""

from __future__ import annotations

import os
import socket
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from rollstream.trainers.settings import TrainedTopic

MIB: Final = 1024 * 1024
PartFormat = Literal["parquet", "jsonl"]


def default_worker_id() -> str:
    """Host and process: unique among living workers."""
    return f"archiver-{socket.gethostname()}-{os.getpid()}"


class ArchiveSettings(BaseModel):
    """What is archived, where to, and when a part is written."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    target: str = Field(min_length=1)
    """Directory, or URL of one: `file://`, `s3://`. One archive belongs to one topic."""
    topic: TrainedTopic = "trajectories"
    """What is archived: as rollout workers made them, or as scorers sent them on."""
    file_format: PartFormat = "parquet"
    """`parquet`, or `jsonl`: lines of JSON, compressed with zstd."""
    partitions: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Partitions of the topic that this process archives; None: all."""
    part_rows: int = Field(default=10_000, ge=1)
    """A part is written when it has this many rows, one for each sample."""
    part_mib: float = Field(default=64.0, gt=0)
    """… or its arrays take this much memory; what is written is smaller."""
    part_minutes: float = Field(default=10.0, gt=0)
    """… or the first record in it was read this long ago. That is also how far the archive may be behind."""
    memory_mib: float = Field(default=512.0, gt=0)
    """For all partitions together: beyond it, the largest part is written early."""
    accepts_loss: bool = False
    """Go on behind records that retention has deleted before they were archived; each gap is a part of its own."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of the Prometheus metrics; None: not served."""
    worker_id: str = Field(default_factory=default_worker_id, min_length=1)
    """Name in logs and status."""
