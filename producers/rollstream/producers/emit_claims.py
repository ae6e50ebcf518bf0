"""Who may emit how much when several producers share one limit: the order of `control` decides. Pure.

A producer claims the next few places under the trainer's ``emit_limit`` by a record on `control`, reads it back, and
counts: of the others, what they claimed *before* it in full, of those that claimed after it only what they had before
that claim. What is left of the limit is granted, in the order of the claims, up to the size of each. A producer claims
again only when its claim is granted in full and used, at the end of the queue.

Never too much: of all claims that were granted something, take the one that stands last in the log. Its owner had read
every other one, or a later record of the same producer, and counted at least what was granted by it. Nobody starves:
whoever claims after another leaves the other's claim whole, so at most one claim of each other producer goes first.
Only newest records count, so compaction changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rollstream.schemas.control import ProducerProgress

CLAIM_GROUPS = 4
"""Places in one claim: what a producer may be ahead of its turn, and what one that died holds until its places are
given back. Each claim costs a record that is read back, some milliseconds."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The newest claim of a run.

    Attributes:
        run_id: whose.
        start: groups below this index were within the limit before.
        end: groups below this index take places.
        place: offset on `control` of the record that made the claim.
    """

    run_id: str
    start: int
    end: int
    place: int


def claim_of(progress: ProducerProgress, offset: int) -> Claim:
    """What a run claims by its newest record; one that keeps to no limit takes what it has emitted."""
    emitted = progress.groups_emitted
    if progress.is_finished or progress.groups_reserved <= emitted:
        return Claim(progress.run_id, emitted, emitted, offset)
    place = offset if progress.reserved_at is None else progress.reserved_at
    return Claim(progress.run_id, max(progress.reserved_from, emitted), progress.groups_reserved, place)


def claims_of_others(placed: Iterable[tuple[ProducerProgress, int]], run_id: str) -> list[Claim]:
    """Claims of all other training runs; evaluation takes no places."""
    return [
        claim_of(progress, offset) for progress, offset in placed if progress.is_train and progress.run_id != run_id
    ]


def groups_granted(own: Claim, others: Iterable[Claim], emit_limit: int) -> int:
    """Groups of the run that may be out in all, in ``[own.start, own.end]``; ask once the claim is read back."""
    taken = sum(other.end if other.place < own.place else other.start for other in others)
    return min(own.end, max(own.start, emit_limit - taken))
