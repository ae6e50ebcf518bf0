from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.trainers.evaluation import default_ks, pass_at_k, pass_hat_k


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int]:
    samples = draw(st.integers(1, 9))
    return samples, draw(st.integers(0, samples)), draw(st.integers(1, samples))


@given(cases())
def test_both_estimates_are_the_shares_among_all_choices_of_k_samples(case: tuple[int, int, int]) -> None:
    samples, solved, k = case
    choices = list(combinations([True] * solved + [False] * (samples - solved), k))
    assert pass_at_k(samples, solved, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    assert pass_hat_k(samples, solved, k) == pytest.approx(sum(map(all, choices)) / len(choices))


@given(st.integers(1, 7), st.integers(1, 7), st.floats(0, 1))
def test_the_expectation_over_outcomes_is_what_k_fresh_samples_would_do(samples: int, k: int, p: float) -> None:
    k = min(k, samples)
    chance = [math.comb(samples, c) * p**c * (1 - p) ** (samples - c) for c in range(samples + 1)]
    assert sum(q * pass_at_k(samples, c, k) for c, q in enumerate(chance)) == pytest.approx(1 - (1 - p) ** k)
    assert sum(q * pass_hat_k(samples, c, k) for c, q in enumerate(chance)) == pytest.approx(p**k)


def test_large_numbers_neither_overflow_nor_lose_what_is_small() -> None:
    exact = 1 - math.comb(9_999, 1_000) / math.comb(10_000, 1_000)
    assert pass_at_k(10_000, 1, 1_000) == pytest.approx(exact, rel=1e-9)
    assert pass_at_k(100_000, 50_000, 10_000) == 1.0


@pytest.mark.parametrize("case", [(4, 1, 5), (4, 5, 1), (4, -1, 1), (4, 1, 0)])
def test_numbers_that_mean_nothing_are_refused(case: tuple[int, int, int]) -> None:
    for estimator in (pass_at_k, pass_hat_k):
        with pytest.raises(ValueError, match="1 <= k <= n"):
            estimator(*case)


@given(st.integers(1, 5000))
def test_the_ks_taken_by_default_are_powers_of_two_and_the_number_of_samples(samples: int) -> None:
    *powers, last = default_ks(samples)
    assert last == samples
    assert all(k.bit_count() == 1 for k in powers)
    assert [*powers, last] == sorted({*powers, last})
    assert 2 * (powers[-1] if powers else 1) >= samples
