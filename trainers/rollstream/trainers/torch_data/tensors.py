"""Batches as torch tensors; on the CPU they share their memory with the numpy arrays they are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from numpy.typing import NDArray

from rollstream.trainers.batches import Advantages, TrainingBatch
from rollstream.trainers.packing import Overlong, PackedBatch, PackedRow

if TYPE_CHECKING:
    import torch


class PaddedTensors(TypedDict):
    """N samples, padded on the right to T tokens; meanings as in ``PaddedBatch``.

    ``input_ids``, ``attention_mask`` int64 [N, T]; ``response_mask`` bool [N, T]; ``logprobs`` float32 [N, T];
    ``versions`` int32 [N, T]; ``rewards`` and, if asked for, ``advantages`` float32 [N]; ``groups``, ``members``,
    ``samples`` int32 [N].
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    logprobs: torch.Tensor
    versions: torch.Tensor
    rewards: torch.Tensor
    groups: torch.Tensor
    members: torch.Tensor
    samples: torch.Tensor
    advantages: NotRequired[torch.Tensor]


class PackedTensors(TypedDict):
    """One row of K samples end to end, L tokens, as a batch of one; meanings as in ``PackedRow``.

    ``input_ids``, ``position_ids`` int64 [1, L]; ``response_mask`` bool [1, L]; ``logprobs`` float32 [1, L];
    ``versions`` int32 [1, L]; ``cu_seqlens`` int32 [K + 1]; ``max_seqlen`` a Python int; ``rewards`` float32 [K];
    ``groups``, ``members``, ``samples`` int32 [K]. If asked for, ``advantages`` float32 [1, L]: that of the trajectory
    on sampled tokens, 0.0 elsewhere.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    response_mask: torch.Tensor
    logprobs: torch.Tensor
    versions: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    rewards: torch.Tensor
    groups: torch.Tensor
    members: torch.Tensor
    samples: torch.Tensor
    advantages: NotRequired[torch.Tensor]


def padded_tensors(
    batch: TrainingBatch,
    pad_token_id: int,
    *,
    advantages: Advantages | None = None,
    device: torch.device | str | None = None,
) -> PaddedTensors:
    """All trainable samples as rectangles.

    Args:
        batch: its trainable samples become rows.
        pad_token_id: what ``input_ids`` holds behind a sample.
        advantages: an estimator, its name, or one's own, per group a float32 [members].
        device: where to copy to; None: the CPU, without a copy.

    Raises:
        SettingsError: ``advantages`` names no estimator, or has not the shapes of the groups.
    """
    padded = batch.to_padded(pad_token_id, advantages=advantages)
    tensors = PaddedTensors(
        input_ids=_tensor(padded.input_ids, device),
        attention_mask=_tensor(padded.attention_mask, device),
        response_mask=_tensor(padded.response_mask.view(bool), device),
        logprobs=_tensor(padded.logprobs, device),
        versions=_tensor(padded.versions, device),
        rewards=_tensor(padded.rewards, device),
        groups=_tensor(padded.groups, device),
        members=_tensor(padded.members, device),
        samples=_tensor(padded.samples, device),
    )
    if padded.advantages is not None:
        tensors["advantages"] = _tensor(padded.advantages, device)
    return tensors


def packed_tensors(
    batch: TrainingBatch,
    max_tokens: int,
    *,
    overlong: Overlong = "error",
    min_rows: int = 0,
    advantages: Advantages | None = None,
    device: torch.device | str | None = None,
) -> list[PackedTensors]:
    """All trainable samples in rows of at most ``max_tokens``, one dict per row; see ``TrainingBatch.to_packed``.

    Raises:
        SettingsError: a sample is too long (it is named), or ``advantages`` does not fit.
    """
    packed = batch.to_packed(max_tokens, overlong=overlong, min_rows=min_rows, advantages=advantages)
    return row_tensors(packed, device=device)


def row_tensors(packed: PackedBatch, *, device: torch.device | str | None = None) -> list[PackedTensors]:
    """The rows of a packed batch as tensors."""
    return [_row_tensors(row, device) for row in packed]


def _row_tensors(row: PackedRow, device: torch.device | str | None) -> PackedTensors:
    tensors = PackedTensors(
        input_ids=_tensor(row.input_ids[None], device),
        position_ids=_tensor(row.position_ids[None], device),
        response_mask=_tensor(row.response_mask[None].view(bool), device),
        logprobs=_tensor(row.logprobs[None], device),
        versions=_tensor(row.versions[None], device),
        cu_seqlens=_tensor(row.cu_seqlens, device),
        max_seqlen=row.max_seqlen,
        rewards=_tensor(row.rewards, device),
        groups=_tensor(row.groups, device),
        members=_tensor(row.members, device),
        samples=_tensor(row.samples, device),
    )
    if row.advantages is not None:
        tensors["advantages"] = _tensor(row.token_advantages[None], device)
    return tensors


def _tensor(array: NDArray[Any], device: torch.device | str | None) -> torch.Tensor:
    import torch

    tensor = torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]  -- torch annotates it in part
    return tensor if device is None else tensor.to(device)
