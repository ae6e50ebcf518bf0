"""Places that a producer has reserved and died on come back."""

from __future__ import annotations

from rollstream.schemas.control import ProducerProgress
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.groups import SILENT_PRODUCER_S
from rollstream.trainers.settings import TrainerSettings

SETTINGS = TrainerSettings(groups_per_batch=4, pipeline_depth=1, group_deadline_s=10.0)
DEADLINE_S = SILENT_PRODUCER_S
"""The later of the two deadlines."""


def progress(emitted: int, reserved: int, *, is_finished: bool = False, updated_at: float = 0.0) -> ProducerProgress:
    return ProducerProgress(
        run_id="run",
        groups_emitted=emitted,
        group_size=2,
        groups_reserved=reserved,
        is_finished=is_finished,
        updated_at=updated_at,
    )


def test_places_that_a_silent_producer_holds_are_given_back_after_the_deadline() -> None:
    former = BatchFormer(SETTINGS, "trajectories")
    former.note_progress(progress(0, 4), now_s=0.0)
    assert not former.has_overdue(DEADLINE_S - 0.1)
    assert former.has_overdue(DEADLINE_S)
    before = former.emit_limit
    former.expire(DEADLINE_S)
    assert (former.stats().lost, former.emit_limit) == (4, before + 4)
    assert not former.has_overdue(10 * DEADLINE_S), "once is enough"


def test_a_producer_that_speaks_keeps_its_places() -> None:
    former = BatchFormer(SETTINGS, "trajectories")
    for at_s in range(0, 200, 10):
        former.note_progress(progress(0, 4, updated_at=at_s), now_s=at_s)
    former.expire(190.0)
    assert former.stats().lost == 0


def test_a_finished_run_holds_no_places() -> None:
    former = BatchFormer(SETTINGS, "trajectories")
    former.note_progress(progress(0, 4, is_finished=True), now_s=0.0)
    former.expire(10 * DEADLINE_S)
    assert former.stats().lost == 0
