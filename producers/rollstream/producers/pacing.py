"""How far a producer may go: the trainer's limit, a pause, or nothing in its way. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from rollstream.schemas.control import Pause, ProducerProgress, TrainerProgress

PaceState = Literal["emitting", "waiting_for_trainer", "paused"]
Pacing = Literal["free", "follow", "wait"]
"""``free``: no limit. ``follow``: the trainer's limit, once there is one. ``wait``: nothing before its first limit."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What to do now.

    Attributes:
        state: why the producer goes on or waits.
        groups_allowed: groups of this run that may have been emitted in all; None: no limit.
    """

    state: PaceState
    groups_allowed: int | None


def decide_pace(
    groups_emitted: int,
    *,
    pacing: Pacing,
    trainer: TrainerProgress | None,
    pause: Pause | None,
    groups_of_other_runs: int = 0,
) -> Pace:
    """Whether the next group may go out after ``groups_emitted`` groups of this run.

    The limit is shared by all training runs on the same topics.
    """
    allowed = _groups_allowed(pacing, trainer, groups_of_other_runs)
    if pause is not None and pause.is_paused:
        return Pace("paused", allowed)
    if allowed is not None and groups_emitted >= allowed:
        return Pace("waiting_for_trainer", allowed)
    return Pace("emitting", allowed)


def groups_of_other_runs(progresses: Iterable[ProducerProgress], run_id: str) -> int:
    """Training groups that other runs have emitted under the same limit."""
    return sum(p.groups_emitted for p in progresses if p.run_id != run_id and p.is_train)


def _groups_allowed(pacing: Pacing, trainer: TrainerProgress | None, groups_of_other_runs: int) -> int | None:
    if pacing == "free":
        return None
    if trainer is None:
        return 0 if pacing == "wait" else None
    if trainer.emit_limit is None:
        return None
    return max(0, trainer.emit_limit - groups_of_other_runs)
