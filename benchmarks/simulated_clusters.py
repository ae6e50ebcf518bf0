"""Clusters of 1 to 256 workers in virtual time, synchronous and asynchronous beside the ideal.

``python benchmarks/simulated_clusters.py`` prints every run; `make bench` takes the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from figures import Figure, figure
from simulated_cluster import Cluster, Outcome, simulate
from workbench import Workbench

COMMAND = "python benchmarks/run.py --only simulated_clusters"
BATCHES = {1: 100, 4: 80, 16: 60, 64: 40, 256: 24}
"""By number of workers: large batches vary less."""
TWO_TAILS = ("lognormal 0.5", "10 % ten times longer")
RECOMMENDED_DEPTH = 2
LONG_STALENESS = 8
"""For episodes that last many steps."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same cluster under several depths; ``outcomes[0]`` is synchronous."""

    cluster: Cluster
    outcomes: dict[int, Outcome]

    def speed_up(self, depth: int) -> float:
        """Against the synchronous one."""
        return self.outcomes[0].seconds / self.outcomes[depth].seconds


def compare(cluster: Cluster, depths: Sequence[int] = (0, 1, RECOMMENDED_DEPTH)) -> Comparison:
    """Run the cluster under each depth."""
    return Comparison(cluster, {depth: simulate(replace(cluster, pipeline_depth=depth)) for depth in depths})


def clusters(sizes: Sequence[int] = tuple(BATCHES)) -> Iterator[Cluster]:
    """What is compared."""
    for durations in TWO_TAILS:
        for workers in sizes:
            yield Cluster(workers=workers, batches=BATCHES[workers], durations=durations)
    for durations in ("lognormal 1.0", "pareto 1.5"):
        for max_staleness in (4, LONG_STALENESS):
            yield Cluster(workers=16, batches=BATCHES[16], durations=durations, max_staleness=max_staleness)
    for slots in (8, 64):
        yield Cluster(workers=16, batches=24, slots_per_worker=slots, is_placed=True)


def measure(bench: Workbench) -> list[Figure]:
    """Figures of all clusters at the recommended depth."""
    chosen = list(clusters())
    if bench.is_quick:
        chosen = [replace(cluster, batches=4) for cluster in chosen if cluster.workers == 1]
    figures: list[Figure] = []
    for cluster in chosen:
        bench.say(f"{cluster.workers} workers, {cluster.durations}")
        figures += _figures(compare(cluster))
    return figures


def _figures(comparison: Comparison) -> list[Figure]:
    cluster, best = comparison.cluster, comparison.outcomes[RECOMMENDED_DEPTH]
    is_long = cluster.durations not in TWO_TAILS
    name = f"simulated cluster, {cluster.workers} workers, {cluster.durations}"
    name += f", max_staleness {cluster.max_staleness}" if is_long else ""
    name += _placed(cluster)
    has_bar = not cluster.is_placed and not (is_long and cluster.max_staleness != LONG_STALENESS)
    others = f"depth 1: {comparison.outcomes[1].of_ideal:.2f}, synchronous: {comparison.outcomes[0].of_ideal:.2f}"
    note = (
        f"depth {RECOMMENDED_DEPTH}; {others}; staleness mean {best.mean_staleness:.1f}, max {best.max_staleness}; "
        f"idle: trainer {best.trainer_idle:.0%}, slots {best.slots_idle:.0%}; held {best.held_s / best.seconds:.0%}"
    )
    of_ideal = figure(
        f"{name}: of the ideal", best.of_ideal, "", bar=0.95 if has_bar else None, command=COMMAND, note=note,
        versus="the ideal asynchronous bound, same batches",
    )  # fmt: skip
    speed_up = figure(
        f"{name}: async / sync", comparison.speed_up(RECOMMENDED_DEPTH), "x", command=COMMAND,
        bar=2.2 if has_bar and cluster.workers >= 4 else None, versus="synchronous, same episodes",
    )  # fmt: skip
    return [of_ideal, speed_up]


HEADER = ("workers", "episodes", "staleness", "depth", "of ideal", "x sync", "mean", "max", "dropped", "held", "idle")


def _placed(cluster: Cluster) -> str:
    return f", {cluster.slots_per_worker} slots each, by partition" if cluster.is_placed else ""


def print_table(comparisons: Iterator[Comparison], out: TextIO) -> None:
    """A Markdown table, a row for each run. ``idle``: trainer / slots."""
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", file=out)
    for each in comparisons:
        for depth, outcome in each.outcomes.items():
            cells = (
                f"{each.cluster.workers}{_placed(each.cluster)}", each.cluster.durations,
                f"{each.cluster.max_staleness}", f"{depth}", f"{outcome.of_ideal:.2f}", f"{each.speed_up(depth):.2f}",
                f"{outcome.mean_staleness:.2f}", f"{outcome.max_staleness}", f"{outcome.dropped:.1%}",
                f"{outcome.held_s / outcome.seconds:.0%}", f"{outcome.trainer_idle:.0%} / {outcome.slots_idle:.0%}",
            )  # fmt: skip
            print(f"| {' | '.join(cells)} |", file=out, flush=True)


if __name__ == "__main__":
    print_table((compare(cluster) for cluster in clusters()), sys.stdout)
