"""The whole pipeline, production code in every role, under the faults of the protocol's model; and planted bugs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
from simulator.campaigning import Figures, Found, campaign, search, simulating_processes
from simulator.plants import PLANTS

SEEDS = range(1000)
SOME = 40
"""Scenarios of each family that favours something rare."""
FAMILIES = ("zombies", "rebalances", "tools", "clock", "poison", "trainer", "again", "failures", "payments")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_promise_is_broken_in_a_thousand_scenarios() -> None:
    figures = Figures()
    for outcome in campaign(SEEDS):
        figures.add(outcome)

    assert [(outcome.seed, outcome.violation) for outcome in figures.violations] == []
    assert figures.faults >= 3 * len(SEEDS)
    assert figures.samples > 3 * len(SEEDS)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_promise_is_broken_where_something_rare_is_frequent(family: str) -> None:
    outcomes = list(campaign(range(SOME), family))

    assert [(outcome.seed, outcome.violation) for outcome in outcomes if outcome.violation] == []


def test_a_scenario_is_the_same_in_every_process() -> None:
    first, second = list(campaign(range(6), workers=1)), list(campaign(range(6), workers=2))

    assert first == second
    assert len({outcome.digest for outcome in first}) == len(first)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with simulating_processes() as processes:
        yield processes


@pytest.fixture(scope="module")
def searches(pool: ProcessPoolExecutor) -> dict[str, Future[Found | None]]:
    return {name: pool.submit(search, name) for name in PLANTS}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name: str, searches: dict[str, Future[Found | None]]) -> None:
    found = searches[name].result()

    assert found is not None, f"{name!r} was not found in {PLANTS[name].within} scenarios"
    assert found.without_plant is None, f"seed {found.seed} shows {found.without_plant!r} without the plant too"
