"""Scenarios spread over operating system processes."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from simulator.plants import PLANTS
from simulator.profiles import PROFILES
from simulator.world import Outcome, run_seed

CHUNK = 25


@dataclass
class Figures:
    """What a campaign has seen."""

    seeds: int = 0
    steps: int = 0
    faults: int = 0
    fewest_faults: int | None = None
    samples: int = 0
    resampled: int = 0
    virtual_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter[str])
    violations: list[Outcome] = field(default_factory=list[Outcome])

    def add(self, outcome: Outcome) -> None:
        """One more scenario."""
        self.seeds += 1
        self.steps += outcome.steps
        self.faults += outcome.faults
        self.samples += outcome.samples
        self.resampled += outcome.resampled
        self.virtual_s += outcome.virtual_s
        self.statuses.update(outcome.statuses)
        if outcome.violation is not None:
            self.violations.append(outcome)

    def told(self, seconds: float) -> str:
        """One line."""
        endings = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        return (
            f"{self.seeds} seeds, {len(self.violations)} violations, {self.steps} steps, {self.faults} faults "
            f"({self.faults / max(1, self.seeds):.1f} each), {self.samples} generations ({self.resampled} repeated), "
            f"{self.virtual_s / 3600:.1f} h simulated in {seconds:.0f} s; {endings}"
        )


@dataclass(frozen=True)
class Found:
    """A planted bug that was found: the scenario shows it, and shows nothing without it."""

    seed: int
    violation: str
    without_plant: str | None


def search(name: str) -> Found | None:
    """Look for a planted bug within its number of seeds."""
    plant = PLANTS[name]
    for seed in range(plant.within):
        outcome = run_seed(seed, PROFILES[plant.profile], plant=plant.apply)
        if outcome.violation is not None:
            return Found(seed, outcome.violation, run_seed(seed, PROFILES[plant.profile]).violation)
    return None


@contextmanager
def simulating_processes(workers: int = 2) -> Generator[ProcessPoolExecutor]:
    """Operating system processes that do nothing but simulate."""
    with _same_hashes(), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _quiet) as pool:
        yield pool


def campaign(seeds: Sequence[int], profile: str = "default", *, workers: int = 2) -> Iterator[Outcome]:
    """Outcomes in order of their seeds."""
    chunks = [list(seeds[start : start + CHUNK]) for start in range(0, len(seeds), CHUNK)]
    with simulating_processes(workers) as pool:
        for outcomes in pool.map(_run, chunks, [profile] * len(chunks)):
            yield from outcomes


@contextmanager
def _same_hashes() -> Generator[None]:
    """Nothing should depend on the hashes of strings; if something does, it does so alike in every run."""
    former = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        yield
    finally:
        if former is None:
            del os.environ["PYTHONHASHSEED"]
        else:
            os.environ["PYTHONHASHSEED"] = former


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    gc.freeze()


def _run(seeds: list[int], profile: str) -> list[Outcome]:
    return [run_seed(seed, PROFILES[profile]) for seed in seeds]
