"""One batch, dealt to the ranks of a data-parallel trainer: whole groups or whole trajectories, balanced by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.advantages import Estimator, batch_advantages
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.packing import Overlong, PackedBatch, plan_rows

DealBy = Literal["group", "trajectory"]


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank trains on, and what it must know of the others to make steps together with them.

    Attributes:
        batch: number, lineage and version of the whole batch, and this rank's groups in the order they had; may be
            empty. Dealt by trajectory, a group holds this rank's members only; each excluded member is with one rank.
        rank: whose share it is.
        lengths: for every rank the tokens of its trainable samples, prompt and response, in order.
        sampled_tokens: tokens that the policy sampled, in the whole batch: what a token-mean loss is divided by.
        advantages: per group of ``batch`` a float32 [members], computed over the whole batch before it was dealt; None
            if they were not asked for.
    """

    batch: TrainingBatch
    rank: int
    lengths: tuple[tuple[int, ...], ...]
    sampled_tokens: int
    advantages: tuple[NDArray[np.float32], ...] | None = None

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        return len(self.lengths)

    def micro_steps(self, max_tokens: int, *, overlong: Overlong = "error") -> int:
        """Rows of at most ``max_tokens`` that the rank with the most of them needs; the same number on every rank.

        Raises:
            SettingsError: a sample of any rank is longer.
        """
        return max(len(plan_rows(lengths, max_tokens, overlong=overlong)) for lengths in self.lengths)

    def to_packed(self, max_tokens: int, *, overlong: Overlong = "error") -> PackedBatch:
        """The share in exactly ``micro_steps(max_tokens)`` rows: fewer samples make shorter, at last empty, rows.

        Raises:
            SettingsError: a sample of any rank is longer than ``max_tokens``.
        """
        return self.batch.to_packed(
            max_tokens,
            overlong=overlong,
            min_rows=self.micro_steps(max_tokens, overlong=overlong),
            advantages=self.advantages,
        )


def deal(
    batch: TrainingBatch,
    world_size: int,
    *,
    by: DealBy = "group",
    advantages: str | Estimator | None = None,
) -> list[Share]:
    """One share per rank; together they hold every group and trajectory of the batch once.

    The longest goes first, to the rank that has the fewest tokens: no rank has more than the one with the fewest plus
    the longest group (or trajectory). The same batch is dealt the same way. With fewer groups than ranks, as in the
    last batch of a run, some shares are empty.

    Args:
        batch: as the stream delivers it.
        world_size: the number of ranks, at least 1.
        by: ``group`` keeps the members of a prompt on one rank, ``trajectory`` balances better and parts them.
        advantages: an estimator or its name, applied to the whole batch.

    Raises:
        SettingsError: ``world_size`` or the estimator cannot be.
    """
    if world_size < 1:
        raise SettingsError(f"world_size={world_size!r}: a batch is dealt to at least one rank")
    computed = None if advantages is None else batch_advantages(batch, advantages)
    units = [(g, m) for g, group in enumerate(batch.groups) for m in range(len(group.trajectories))]
    weights = {(g, m): sum(_lengths(batch.groups[g].trajectories[m])) for g, m in units}
    if by == "group":
        per_group = [sum(weights[g, m] for m in range(len(group.trajectories))) for g, group in enumerate(batch.groups)]
        ranks = _balanced(per_group, world_size)
        owners = {(g, m): ranks[g] for g, m in units}
    else:
        ranks = _balanced([weights[unit] for unit in units], world_size)
        owners = dict(zip(units, ranks, strict=True))
        ranks = [owners.get((g, 0), 0) for g in range(len(batch.groups))]
    members = [
        [[m for m in range(len(group.trajectories)) if owners[g, m] == rank] for g, group in enumerate(batch.groups)]
        for rank in range(world_size)
    ]
    batches = [_share(batch, ranks, members[rank], rank) for rank in range(world_size)]
    lengths = tuple(tuple(sample.tokens for sample in share.samples()) for share in batches)
    sampled = sum(int(group.sampled_tokens.sum()) for group in batch.groups)
    return [
        Share(share, rank, lengths, sampled, _advantages(computed, ranks, members[rank], rank))
        for rank, share in enumerate(batches)
    ]


def _lengths(trajectory: Trajectory) -> list[int]:
    return [len(s.prompt_ids) + len(s.response_ids) for s in trajectory.samples if s.is_trainable]


def _balanced(weights: Sequence[int], world_size: int) -> list[int]:
    """For each weight its rank: the heaviest first, to the lightest rank, then the one with the fewest."""
    loads, ranks = [(0, 0, rank) for rank in range(world_size)], [0] * len(weights)
    for place in sorted(range(len(weights)), key=lambda place: (-weights[place], place)):
        load, count, rank = min(loads)
        ranks[place] = rank
        loads[rank] = (load + weights[place], count + 1, rank)
    return ranks


def _is_here(group_place: int, ranks: Sequence[int], members: Sequence[Sequence[int]], rank: int) -> bool:
    """Whether a rank has members of a group, or is the one that holds what is excluded of it."""
    return bool(members[group_place]) or ranks[group_place] == rank


def _share(batch: TrainingBatch, ranks: Sequence[int], members: Sequence[Sequence[int]], rank: int) -> TrainingBatch:
    groups: list[TrajectoryGroup] = []
    for place, group in enumerate(batch.groups):
        if _is_here(place, ranks, members, rank):
            trajectories = tuple(group.trajectories[m] for m in members[place])
            excluded, exclusions = (group.excluded, group.exclusions) if ranks[place] == rank else ((), ())
            groups.append(replace(group, trajectories=trajectories, excluded=excluded, exclusions=exclusions))
    return replace(batch, groups=tuple(groups))


def _advantages(
    computed: Sequence[NDArray[np.float32]] | None,
    ranks: Sequence[int],
    members: Sequence[Sequence[int]],
    rank: int,
) -> tuple[NDArray[np.float32], ...] | None:
    if computed is None:
        return None
    return tuple(
        array[np.array(members[place], dtype=np.int64)]
        for place, array in enumerate(computed)
        if _is_here(place, ranks, members, rank)
    )
