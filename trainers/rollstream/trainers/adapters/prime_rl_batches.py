"""Batches of trajectories as prime-rl's packed micro-batches. Pure; knows nothing of prime-rl but its layout.

A file of one data rank is the msgpack of a list of micro-batches. A micro-batch is an array whose places are its
fields, in this order (prime-rl, commit 559b447, ``transports/rollouts/types.py``); fields behind them stay at their
defaults:

0. ``input_ids`` ints [L]: samples end to end
1. ``loss_mask`` bools [L]: sampled by the policy
2. ``advantages`` floats [L]: of the trajectory on sampled tokens, else 0.0
3. ``inference_logprobs`` floats [L]: of the token at the same place, 0.0 where the mask is false
4. ``position_ids`` ints [L]: from 0 in each sample
5. ``sequence_lengths`` ints [K]: tokens of each sample
6. ``temperatures`` floats [L]: that the tokens were drawn at
7. ``env_names`` strings [L]: for prime-rl's metrics
8. ``seq_lens`` ints [K]: as 5, for attention
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import numpy as np

from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.advantages import Estimator
from rollstream.trainers.batches import TrainingBatch
from rollstream.trainers.packing import PackedRow

logger = logging.getLogger(__name__)

MicroBatch = tuple[
    list[int],
    list[bool],
    list[float],
    list[float],
    list[int],
    list[int],
    list[float],
    list[str],
    list[int],
]
DEFAULT_ENV = "rollstream"
RESERVED_ENV = "all"
PADDING_ID = 1
"""Padding is masked; the trainer only needs an id that exists."""


def rank_files(
    batch: TrainingBatch,
    *,
    ranks: int,
    seq_len: int,
    estimator: str | Estimator = "dr_grpo",
    pad_to_multiple_of: int = 1,
) -> list[bytes]:
    """The content of ``rank_<r>.bin`` for each data rank; empty if no sample fits.

    Every rank gets the same number of micro-batches, of about the same number of tokens; where there are too few
    samples, a micro-batch without loss fills in. Samples longer than ``seq_len`` are left out with a warning: cutting
    them would train on half an answer.

    Raises:
        SettingsError: no such estimator.
    """
    micro_batches = packed_micro_batches(
        batch, ranks=ranks, seq_len=seq_len, estimator=estimator, pad_to_multiple_of=pad_to_multiple_of
    )
    return [msgspec.msgpack.encode(dealt) for dealt in deal(micro_batches, ranks)] if micro_batches else []


def packed_micro_batches(
    batch: TrainingBatch,
    *,
    ranks: int,
    seq_len: int,
    estimator: str | Estimator = "dr_grpo",
    pad_to_multiple_of: int = 1,
) -> list[MicroBatch]:
    """All samples that fit, first fit by decreasing length, in a multiple of ``ranks`` micro-batches."""
    rows = _rows(batch, seq_len, 0, estimator)
    wanted = -(-len(rows) // ranks) * ranks
    if wanted > len(rows):
        rows = _rows(batch, seq_len, wanted, estimator)
    micro_batches = [_micro_batch(row, batch, pad_to_multiple_of) for row in rows]
    if micro_batches:
        micro_batches += [_without_loss(micro_batches[0])] * (-len(micro_batches) % ranks)
    return micro_batches


def deal(micro_batches: Sequence[MicroBatch], ranks: int) -> list[list[MicroBatch]]:
    """The same number to each rank, the longest first, each to the rank with the fewest tokens that has room."""
    each = len(micro_batches) // ranks
    dealt: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    for micro_batch in sorted(micro_batches, key=_tokens, reverse=True):
        open_ranks = [rank for rank in dealt if len(rank) < each]
        min(open_ranks, key=lambda rank: sum(map(_tokens, rank))).append(micro_batch)
    return dealt


def _rows(batch: TrainingBatch, seq_len: int, min_rows: int, estimator: str | Estimator) -> list[PackedRow]:
    packed = batch.to_packed(seq_len, overlong="alone", min_rows=min_rows, advantages=estimator)
    for row in packed:
        if len(row.input_ids) > seq_len:
            trajectory = batch.groups[int(row.groups[0])].trajectories[int(row.members[0])]
            logger.warning(
                "a sample of trajectory %s has %d tokens, more than seq_len %d: it is left out",
                trajectory.trajectory_id,
                len(row.input_ids),
                seq_len,
            )
    return [row for row in packed if 0 < len(row.input_ids) <= seq_len]


def _micro_batch(row: PackedRow, batch: TrainingBatch, pad_to_multiple_of: int) -> MicroBatch:
    members: list[tuple[int, int]] = list(zip(row.groups.tolist(), row.members.tolist(), strict=True))
    trajectories = [batch.groups[group].trajectories[member] for group, member in members]
    lengths: list[int] = row.sequence_lengths.tolist()
    padding = -len(row.input_ids) % pad_to_multiple_of
    temperatures: list[float] = np.repeat([t.sampling.temperature for t in trajectories], lengths).tolist()
    env_names = [_env_name(t) for t, length in zip(trajectories, lengths, strict=True) for _ in range(length)]
    padded_lengths = [*lengths[:-1], lengths[-1] + padding]
    return (
        row.input_ids.tolist() + [PADDING_ID] * padding,
        row.response_mask.astype(bool).tolist() + [False] * padding,
        row.token_advantages.tolist() + [0.0] * padding,
        row.logprobs.tolist() + [0.0] * padding,
        row.position_ids.tolist() + list(range(padding)),
        padded_lengths,
        temperatures + [1.0] * padding,
        env_names + [""] * padding,
        padded_lengths,
    )


def _without_loss(source: MicroBatch) -> MicroBatch:
    tokens = _tokens(source)
    return (source[0], [False] * tokens, [0.0] * tokens, *source[3:])


def _tokens(micro_batch: MicroBatch) -> int:
    return len(micro_batch[0])


def _env_name(trajectory: Trajectory) -> str:
    """prime-rl keeps ``all`` for sums over environments."""
    return trajectory.data_source if trajectory.data_source not in ("", RESERVED_ENV) else DEFAULT_ENV
