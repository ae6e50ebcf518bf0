"""Trajectories to optimizer steps: complete groups, each once, never over age; and policies back to the workers."""

from rollstream.trainers.advantages import ADVANTAGES, Estimator, batch_advantages, group_advantages
from rollstream.trainers.batches import PaddedBatch, TrainingBatch, TrajectoryGroup
from rollstream.trainers.dealing import Share, deal
from rollstream.trainers.packing import PackedBatch, PackedRow
from rollstream.trainers.replay import AsyncTrajectoryReplay, TrajectoryReplay
from rollstream.trainers.seeking import FromPolicy
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream import AsyncTrajectoryStream
from rollstream.trainers.stream_state import StreamStats
from rollstream.trainers.sync_stream import TrajectoryStream

__all__ = [
    "ADVANTAGES",
    "AsyncTrajectoryReplay",
    "AsyncTrajectoryStream",
    "Estimator",
    "FromPolicy",
    "PackedBatch",
    "PackedRow",
    "PaddedBatch",
    "Share",
    "StreamStats",
    "TrainerSettings",
    "TrainingBatch",
    "TrajectoryGroup",
    "TrajectoryReplay",
    "TrajectoryStream",
    "batch_advantages",
    "deal",
    "group_advantages",
]
