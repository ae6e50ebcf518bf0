"""Batches as torch tensors, as a dataset of torch, and dealt to ranks of torch.distributed; imports torch on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollstream.trainers.torch_data.dealt_stream import DealtStream
from rollstream.trainers.torch_data.tensors import (
    PackedTensors,
    PaddedTensors,
    packed_tensors,
    padded_tensors,
    row_tensors,
)

if TYPE_CHECKING:
    from rollstream.trainers.torch_data.trajectory_dataset import TrajectoryDataset

__all__ = [
    "DealtStream",
    "PackedTensors",
    "PaddedTensors",
    "TrajectoryDataset",
    "packed_tensors",
    "padded_tensors",
    "row_tensors",
]


def __getattr__(name: str) -> Any:
    if name == "TrajectoryDataset":
        from rollstream.trainers.torch_data import trajectory_dataset

        return trajectory_dataset.TrajectoryDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
