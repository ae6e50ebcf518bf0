"""Whether and when a process that ended is started again. Pure: no clock, no processes."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from rollstream.cli.stop_signals import EXIT_AT_ONCE

KILLS = frozenset({-signal.SIGKILL, -signal.SIGTERM, 0, EXIT_AT_ONCE})
"""Exit codes of a worker that somebody else has ended: a person, the kernel short of memory, a test. It leaves with 0
when it is asked to drain."""
KILLED_AFTER_S = 5.0
"""A process that was killed later than this counts as healthy; one killed sooner is killed at its start."""


@dataclass(frozen=True)
class RestartPolicy:
    """Exponential back-off with a budget that a long healthy run restores.

    Attributes:
        budget: restarts in a row before the process is given up; 0: never restarted.
        first_delay_s: wait before the first restart; every further one in a row waits twice as long.
        max_delay_s: no wait is longer.
        healthy_after_s: a process that ran this long was healthy; its earlier failures no longer count.
    """

    budget: int = 5
    first_delay_s: float = 1.0
    max_delay_s: float = 30.0
    healthy_after_s: float = 60.0


@dataclass(frozen=True)
class Restart:
    """Start it again after ``delay_s``; ``failures`` is the new count of failures in a row."""

    delay_s: float
    failures: int


@dataclass(frozen=True)
class GiveUp:
    """The budget is spent."""

    failures: int


@dataclass(frozen=True)
class Finished:
    """It ended the way it should."""


def after_exit(
    policy: RestartPolicy, *, exit_code: int, ran_s: float, failures: int, may_finish: bool
) -> Restart | GiveUp | Finished:
    """Decide what follows an exit nobody asked for.

    Args:
        policy: delays and budget.
        exit_code: as of ``Process.returncode``; negative for a signal. A kill is not the process's failure.
        ran_s: how long this run of the process took.
        failures: failures in a row before this exit.
        may_finish: exit code 0 means that the work is done (a producer, a trainer). A worker is never done.
    """
    if may_finish and exit_code == 0:
        return Finished()
    if policy.budget and exit_code in KILLS and ran_s >= KILLED_AFTER_S:
        return Restart(policy.first_delay_s, 0)
    failures = 1 if ran_s >= policy.healthy_after_s else failures + 1
    if failures > policy.budget:
        return GiveUp(failures)
    # The exponent is capped, so that a large count of failures cannot overflow the float.
    delay_s = policy.first_delay_s * 2.0 ** min(failures - 1, 30)
    return Restart(min(delay_s, policy.max_delay_s), failures)
