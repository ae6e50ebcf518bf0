"""What a run has come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run; times in seconds, rates in trajectories per second.

    Attributes:
        kills: injuries by role and kind; ``processes_killed`` of them ended a process at once.
        crashes: processes that ended though nobody had hurt them, with their last words.
        lost: tasks without a trajectory.
        untrained: trainable trajectories that never reached the trainer.
        trained_twice: further appearances of a trajectory in the trainer's ledger.
        trained_unequal: trained trajectories that are not the first record with their id.
        trained_out_of_order: whether the ledger's order is not that of an unkilled reader.
        unequal_copies: records that differ from the first one with their id.
        broken_histories: completed or cut episodes whose tool answers are not the history of their own calls.
        episodes_hit: pairs of an injury and an episode that ran on the injured worker; ``episodes_killed``: of a death.
        generations_repeated_max: most generations of one episode begun again each time it changed hands.
        generations_repeated: all of them: also those of episodes that were moved, as workers came and went.
        generations_repeated_mean: begun again, per episode that ran on a worker when that died.
        generations_repeated_blindly: by a worker that had been frozen or cut off and could not know yet that others had
            gone on; at most one per episode each time.
        generations_repeated_unfair: begun again though they were not the one that was running, or nothing was hurt.
        takeover_s_*: from a worker's death to the next sign of life of its episodes; ``clean``: nothing else was hurt
            meanwhile.
        slowest: the takeovers that took longest, in words.
        recovery_s: from the end of the last fault until the rate is nearly what it was; null: not within the run.
        left_late: processes that took longer to leave than they were allowed.
        orphans: processes that outlived those that had started them.
        broken: promises that were broken, in words. Empty: none.
    """

    seed: int
    engine: str
    minutes: float
    kills: dict[str, dict[str, int]]
    injuries: int
    processes_killed: int
    crashes: list[str]
    tasks: int
    episodes: int
    completed: int
    failed: int
    truncated: int
    aborted: int
    lost: int
    untrained: int
    trained: int
    trained_twice: int
    trained_unequal: int
    trained_out_of_order: bool
    copies: int
    unequal_copies: int
    broken_histories: int
    generations: int
    episodes_hit: int
    episodes_killed: int
    generations_repeated: int
    generations_repeated_max: int
    generations_repeated_mean: float
    generations_repeated_blindly: int
    generations_repeated_unfair: int
    session_timeout_s: float
    takeover_s_p50: float | None
    takeover_s_p99: float | None
    takeover_s_max: float | None
    takeover_clean: int
    takeover_clean_s_p50: float | None
    takeover_clean_s_p99: float | None
    takeover_clean_s_max: float | None
    slowest: list[str]
    throughput_before: float
    throughput_during: float
    throughput_after: float
    recovery_s: float | None
    left_late: int
    dead_letters: dict[str, int]
    orphans: list[str]
    broken: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
