"""The curves of a run as PNG."""
# matplotlib is only partly annotated.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rollstream.cli.demo.facts import TrajectoryFacts, mean_reward, split_evenly, tool_call_rate, well_formed_rate

POINTS = 40


def curve(
    facts: Sequence[TrajectoryFacts], figure: Callable[[Sequence[TrajectoryFacts]], float | None]
) -> tuple[list[int], list[float]]:
    """``figure`` over at most 40 equal stretches: (index of the last trajectory of each, value), gaps left out."""
    at: list[int] = []
    values: list[float] = []
    end = 0
    for part in split_evenly(facts, POINTS):
        end += len(part)
        value = figure(part)
        if value is not None:
            at.append(end)
            values.append(value)
    return at, values


def draw_curves(facts: Sequence[TrajectoryFacts], path: Path, title: str) -> None:
    """Draw reward, tool-call rate, well-formed rate, version and staleness over trajectories in the order of tasks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(picture)
    rates, versions = picture.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for label, figure in (
        ("mean reward", mean_reward),
        ("tool-call rate", tool_call_rate),
        ("well-formed rate", well_formed_rate),
    ):
        rates.plot(*curve(facts, figure), marker=".", label=label)
    rates.set_ylim(-0.02, 1.02)
    rates.set_ylabel("share of trajectories")
    rates.set_title(title)
    rates.legend(loc="lower right")
    rates.grid(alpha=0.3)
    versions.plot([fact.policy_version for fact in facts], drawstyle="steps-post", label="oldest policy version")
    versions.plot([fact.staleness for fact in facts], drawstyle="steps-post", label="staleness on arrival", alpha=0.7)
    versions.set_xlabel("trajectories in the order of their tasks")
    versions.legend(loc="upper left")
    versions.grid(alpha=0.3)
    picture.savefig(path, dpi=120)
