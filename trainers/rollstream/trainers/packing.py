"""Samples of any length into rows of at most so many tokens, without padding and without cutting a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rollstream.schemas.errors import SettingsError

Overlong = Literal["error", "alone"]


@dataclass(frozen=True)
class PackedRow:
    """K samples end to end, L tokens together.

    Attributes:
        input_ids: int64 [L].
        position_ids: int64 [L]; 0, 1, 2, … from the beginning of each sample.
        response_mask: uint8 [L]; 1 where the token was sampled by the policy; 0 on the first token of every sample.
        logprobs: float32 [L]; of the token at the same place; 0.0 where ``response_mask`` is 0.
        versions: int32 [L]; the policy version that sampled the token, -1 where ``response_mask`` is 0.
        cu_seqlens: int32 [K + 1]; sample k is ``input_ids[cu_seqlens[k]:cu_seqlens[k + 1]]``, as flash-attention's
            functions for variable lengths want it.
        rewards: float32 [K]; of the sample's trajectory, NaN if it has none.
        groups, members, samples: int32 [K]; places in ``batch.groups``, in the group's ``trajectories`` and in the
            trajectory's ``samples``.
        advantages: float32 [K] of the sample's trajectory, if they were asked for.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    response_mask: NDArray[np.uint8]
    logprobs: NDArray[np.float32]
    versions: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    rewards: NDArray[np.float32]
    groups: NDArray[np.int32]
    members: NDArray[np.int32]
    samples: NDArray[np.int32]
    advantages: NDArray[np.float32] | None = None

    @cached_property
    def sequence_lengths(self) -> NDArray[np.int32]:
        """int32 [K]; tokens of each sample."""
        return np.diff(self.cu_seqlens)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sample; 0 in an empty row."""
        return int(self.sequence_lengths.max(initial=0))

    @cached_property
    def sequence_ids(self) -> NDArray[np.int32]:
        """int32 [L]; which of the K samples a token belongs to, for attention masks in blocks."""
        return np.repeat(np.arange(len(self.sequence_lengths), dtype=np.int32), self.sequence_lengths)

    @cached_property
    def token_rewards(self) -> NDArray[np.float32]:
        """float32 [L]; the reward of the trajectory on each sampled token, 0.0 elsewhere."""
        return self._per_token(self.rewards)

    @cached_property
    def token_advantages(self) -> NDArray[np.float32]:
        """float32 [L]; the advantage of the trajectory on each sampled token, 0.0 elsewhere.

        Raises:
            SettingsError: the batch was packed without advantages.
        """
        if self.advantages is None:
            raise SettingsError('no advantages in this row: pack with to_packed(…, advantages="grpo")')
        return self._per_token(self.advantages)

    def _per_token(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.where(self.response_mask, values[self.sequence_ids], np.float32(0))


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows in the order of their first samples; the samples of a row keep the order of the batch."""

    rows: tuple[PackedRow, ...]
    max_tokens: int

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PackedRow]:
        return iter(self.rows)

    @property
    def fill(self) -> float:
        """Tokens that are there, of the tokens that would have room; 0.0 without rows."""
        room = sum(max(self.max_tokens, len(row.input_ids)) for row in self.rows)
        return sum(len(row.input_ids) for row in self.rows) / room if room else 0.0


def plan_rows(
    lengths: Sequence[int], max_tokens: int, *, overlong: Overlong = "error", min_rows: int = 0
) -> list[list[int]]:
    """Which samples share a row: places in ``lengths``, first fit by decreasing length.

    First fit decreasing needs at most 11/9 of the fewest rows possible and one more (Johnson 1973; Dósa 2007). The same
    lengths give the same plan.

    Args:
        lengths: tokens of each sample.
        max_tokens: room of a row.
        overlong: what to do with a sample longer than that: ``error``, or ``alone`` in a row of its own.
        min_rows: the fullest rows are parted until there are so many; if samples are fewer, empty rows follow.

    Raises:
        SettingsError: ``max_tokens`` is no room at all, or a sample is longer (its place is named).
    """
    if max_tokens < 1:
        raise SettingsError(f"max_tokens={max_tokens!r}: a row needs room for at least one token")
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    if overlong == "error" and longest is not None and lengths[longest] > max_tokens:
        raise SettingsError(
            f"sample {longest} has {lengths[longest]} tokens, a row only {max_tokens}: raise max_tokens, limit what is "
            'rolled out, or pass overlong="alone" for a longer row of its own'
        )
    rows: list[list[int]] = []
    free = np.zeros(len(lengths), dtype=np.int64)
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        fits = free[: len(rows)] >= lengths[place]
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            free[row] = max_tokens
        rows[row].append(place)
        free[row] -= lengths[place]
    _part(rows, lengths, min_rows)
    return [*sorted(sorted(row) for row in rows), *([] for _ in range(min_rows - len(rows)))]


def _part(rows: list[list[int]], lengths: Sequence[int], min_rows: int) -> None:
    """Halve the fullest row that has two samples, by tokens, until there are enough rows or nothing to halve."""
    while len(rows) < min_rows:
        row = max((r for r in rows if len(r) > 1), key=lambda r: sum(lengths[place] for place in r), default=None)
        if row is None:
            return
        halves: tuple[list[int], list[int]] = ([], [])
        for place in sorted(row, key=lambda place: (-lengths[place], place)):
            min(halves, key=lambda half: (sum(lengths[p] for p in half), len(half))).append(place)
        row[:] = halves[0]
        rows.append(halves[1])
