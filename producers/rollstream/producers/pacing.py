"""How far a producer may go: the trainer's limit, a pause, or nothing in its way. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rollstream.producers.emit_claims import Claim, groups_granted
from rollstream.schemas.control import Pause, TrainerProgress

PaceState = Literal["emitting", "waiting_for_trainer", "paused"]
Pacing = Literal["free", "follow", "wait"]
"""``free``: no limit. ``follow``: the trainer's limit, once there is one. ``wait``: nothing before its first limit."""


@dataclass(frozen=True, slots=True)
class Pace:
    """What to do now.

    Attributes:
        state: why the producer goes on or waits.
        groups_allowed: groups of this run that may have been emitted in all; None: no limit.
        needs_claim: nothing is claimed for the next group; claim it and ask again.
    """

    state: PaceState
    groups_allowed: int | None
    needs_claim: bool = False


def decide_pace(
    group_index: int,
    *,
    pacing: Pacing,
    trainer: TrainerProgress | None,
    pause: Pause | None,
    claim: Claim | None = None,
    others: Sequence[Claim] = (),
) -> Pace:
    """Whether group ``group_index`` may go out.

    Args:
        group_index: the first group of the run that was not emitted.
        pacing: how this run keeps to the limit.
        trainer: its newest word.
        pause: the newest one.
        claim: the newest one of this run, read back; None: it has none.
        others: the newest claims of all other training runs, which share the limit.
    """
    limit = _limit(pacing, trainer)
    is_claimed = claim is not None and group_index < claim.end
    if limit is None:
        allowed = None
    elif claim is not None and is_claimed:
        allowed = groups_granted(claim, others, limit)
    else:
        allowed = max(0, limit - sum(other.end for other in others))
    if pause is not None and pause.is_paused:
        return Pace("paused", allowed)
    if allowed is None or (is_claimed and group_index < allowed):
        return Pace("emitting", allowed)
    return Pace("waiting_for_trainer", allowed, needs_claim=not is_claimed and trainer is not None)


def _limit(pacing: Pacing, trainer: TrainerProgress | None) -> int | None:
    if pacing == "free":
        return None
    if trainer is None:
        return 0 if pacing == "wait" else None
    return trainer.emit_limit
