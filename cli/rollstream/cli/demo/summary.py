"""The figures a demo run ends with. Pure: facts in, figures out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rollstream.cli.demo.facts import TrajectoryFacts, mean_reward, tokens_per_s, tool_call_rate, well_formed_rate
from rollstream.cli.demo.flow import Flow
from rollstream.schemas.errors import SettingsError

EDGE_SHARE = 0.1


@dataclass(frozen=True)
class RunSummary:
    """``summary.json``. First and last mean the first and last tenth of the trajectories, by the order of their tasks.

    Attributes:
        reward_first_in_log: the same over the first tenth in log order, where short episodes of a batch come first.
        reward_last_in_log: the same over the last tenth in log order.
        trajectories_produced: distinct trajectories in the log.
        trajectories_consumed: those in groups the trainer has taken, dropped groups included.
        duplicates_dropped: records in the log beyond the first with their id.
        lost: tasks without a trajectory when the run ended; anything but 0 is a defect.
        tokens_per_s: sampled tokens over the time from the first to the last trajectory, stops left out.
        max_staleness: greatest distance between the trainer's version and the oldest version in a trajectory it got.
        wall_s: from the command to the summary, everything included; over all sessions, if the demo was stopped.
        sessions: how often the demo was started until it came to its end.
    """

    name: str
    seed: int
    steps: int
    reward_first: float | None
    reward_last: float | None
    reward_first_in_log: float | None
    reward_last_in_log: float | None
    tool_call_rate_first: float | None
    tool_call_rate_last: float | None
    well_formed_rate_first: float | None
    well_formed_rate_last: float | None
    trajectories_produced: int
    trajectories_consumed: int
    duplicates_dropped: int
    lost: int
    failed: int
    policy_versions: int
    tokens_per_s: float
    max_staleness: int
    wall_s: float
    sessions: int
    phases_s: dict[str, float]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=2) + "\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> RunSummary:
        """What ``write`` has written.

        Raises:
            SettingsError: it is not there, or is of another version.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"the summary {str(path)!r} cannot be read: {error}") from error


def edges(facts: Sequence[TrajectoryFacts]) -> tuple[Sequence[TrajectoryFacts], Sequence[TrajectoryFacts]]:
    """The first and the last tenth, at least one trajectory each if there is any."""
    count = max(1, int(len(facts) * EDGE_SHARE))
    return facts[:count], facts[-count:]


def summarise(
    flow: Flow,
    *,
    name: str,
    seed: int,
    steps: int,
    wall_s: float,
    session_starts: Sequence[float] = (),
    trained_staleness: int = 0,
    phases_s: dict[str, float] | None = None,
) -> RunSummary:
    """The figures of a run from everything that was read of its topics, and from what the trainer said of staleness."""
    facts = flow.in_task_order()
    first, last = edges(facts)
    first_in_log, last_in_log = edges(flow.in_log_order())
    trainer = flow.trainer
    group_size = flow.ledger.group_size
    return RunSummary(
        name=name,
        seed=seed,
        steps=steps,
        reward_first=_rounded(mean_reward(first)),
        reward_last=_rounded(mean_reward(last)),
        reward_first_in_log=_rounded(mean_reward(first_in_log)),
        reward_last_in_log=_rounded(mean_reward(last_in_log)),
        tool_call_rate_first=_rounded(tool_call_rate(first)),
        tool_call_rate_last=_rounded(tool_call_rate(last)),
        well_formed_rate_first=_rounded(well_formed_rate(first)),
        well_formed_rate_last=_rounded(well_formed_rate(last)),
        trajectories_produced=flow.ledger.ended,
        trajectories_consumed=trainer.groups_consumed * group_size if trainer else 0,
        duplicates_dropped=flow.ledger.duplicates,
        lost=len(flow.ledger.open_tasks()),
        failed=sum(fact.status == "failed" for fact in facts),
        policy_versions=flow.policy_versions,
        tokens_per_s=round(tokens_per_s(facts, session_starts), 1),
        max_staleness=max(trained_staleness, *(fact.staleness for fact in facts), 0),
        wall_s=round(wall_s, 1),
        sessions=max(1, len(session_starts)),
        phases_s={phase: round(seconds, 1) for phase, seconds in (phases_s or {}).items()},
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
