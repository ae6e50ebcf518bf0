"""Seeded permutations that need no memory: position *i* of an epoch is computed, not looked up."""

from __future__ import annotations

from hashlib import blake2b

_ROUNDS = 6
_MASK_64 = (1 << 64) - 1


class Permutation:
    """A permutation of ``range(count)``, the same for the same (count, seed, epoch) on every machine.

    A Feistel network over the next larger square of a power of two; values outside the range walk on along their
    cycle, so each position costs a few rounds of integer arithmetic and no state.
    """

    def __init__(self, count: int, *, seed: int, epoch: int) -> None:
        self.count = count
        self._half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
        self._half_mask = (1 << self._half_bits) - 1
        digest = blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)]

    def __getitem__(self, position: int) -> int:
        """The value at ``position``; IndexError outside ``[0, count)``."""
        if not 0 <= position < self.count:
            raise IndexError(f"position {position} is outside of [0, {self.count})")
        value = self._feistel(position)
        while value >= self.count:
            value = self._feistel(value)
        return value

    def _feistel(self, value: int) -> int:
        left, right = value >> self._half_bits, value & self._half_mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._half_mask)
        return left << self._half_bits | right


def row_order(rows: range, *, seed: int | None, epoch: int) -> Permutation | range:
    """Positions into ``rows`` in the order of one epoch; ``seed`` None: as they are."""
    if seed is None:
        return range(len(rows))
    return Permutation(len(rows), seed=seed, epoch=epoch)


def _mix(value: int) -> int:
    """Every input bit changes every output bit (multiply and shift, 64 bits)."""
    value = (value ^ (value >> 32)) * 0xD6E8FEB86659FD93 & _MASK_64
    value = (value ^ (value >> 32)) * 0xD6E8FEB86659FD93 & _MASK_64
    return value ^ (value >> 32)
