from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.producers.shuffling import Permutation, row_order


@given(count=st.integers(1, 3000), seed=st.integers(), epoch=st.integers(0, 100))
def test_every_row_comes_exactly_once(count: int, seed: int, epoch: int) -> None:
    order = Permutation(count, seed=seed, epoch=epoch)
    assert sorted(order[i] for i in range(count)) == list(range(count))


def test_the_same_seed_and_epoch_give_the_same_order_on_every_machine() -> None:
    order = Permutation(1319, seed=7, epoch=0)
    assert [order[i] for i in range(8)] == [251, 359, 121, 1254, 623, 763, 875, 1203]


@pytest.mark.parametrize(("seed", "epoch"), [(8, 0), (7, 1)])
def test_another_seed_or_epoch_gives_another_order(seed: int, epoch: int) -> None:
    first, other = Permutation(1319, seed=7, epoch=0), Permutation(1319, seed=seed, epoch=epoch)
    agreeing = sum(first[i] == other[i] for i in range(1319))
    assert agreeing < 20


def test_neighbours_are_torn_apart() -> None:
    order = Permutation(10_000, seed=0, epoch=0)
    distances = [abs(order[i + 1] - order[i]) for i in range(9_999)]
    assert 3_000 < sum(distances) / len(distances) < 3_700  # a third of the range for independent positions


def test_a_billion_rows_need_no_memory() -> None:
    order = Permutation(10**9, seed=1, epoch=0)
    assert len({order[i] for i in range(0, 10**9, 10**7)}) == 100


@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_outside_is_refused(position: int) -> None:
    with pytest.raises(IndexError, match=r"outside of \[0, 5\)"):
        Permutation(5, seed=0, epoch=0)[position]


def test_without_a_seed_rows_keep_their_order() -> None:
    order = row_order(range(10, 14), seed=None, epoch=3)
    assert [order[i] for i in range(4)] == [0, 1, 2, 3]
