from __future__ import annotations

from dataclasses import replace

from rollstream.schemas.control import ProducerProgress, WorkerStatus
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.groups import ArrivingGroup, GroupKey
from rollstream.trainers.holding import AwaitedGroup
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream_state import StreamStats
from rollstream.trainers.waiting import explain_wait

NOTHING: StreamStats = BatchFormer(TrainerSettings(), "t").stats()


def worker(worker_id: str, *, updated_at: float, running: int = 0) -> WorkerStatus:
    return WorkerStatus(
        worker_id=worker_id, role="rollout-worker", state="running", running=running, updated_at=updated_at
    )


def explained(
    *,
    stats: StreamStats = NOTHING,
    open_groups: int = 0,
    producers: tuple[ProducerProgress, ...] = (),
    workers: tuple[WorkerStatus, ...] = (),
    lag_records: int | None = 3,
    wanted: dict[int, int] | None = None,
    held_for: tuple[AwaitedGroup, ...] = (),
    needs_scorers: bool = False,
) -> str:
    groups = [
        ArrivingGroup(GroupKey("run", index), "g", 2, True, known_since_s=0, wanted=wanted or {})
        for index in range(open_groups)
    ]
    return explain_wait(
        12.3,
        groups_per_batch=4,
        stats=stats,
        open_groups=groups,
        held_for=held_for,
        lag_records=lag_records,
        producers=producers,
        workers=workers,
        now_s=100.0,
        needs_scorers=needs_scorers,
    )


def test_what_is_there_and_what_is_missing_are_counted() -> None:
    text = explained(stats=replace(NOTHING, groups_ready=1, groups_open=7), open_groups=7)
    assert "no batch after 12 s: 1 of 4 groups are complete; 7 are open" in text
    assert "group 4 of run 'run' lacks members [0, 1], and 2 more" in text
    assert "3 records in the topic are unread" in text


def test_a_broker_that_is_gone_is_said_to_be_gone() -> None:
    assert "the broker does not answer" in explained(lag_records=None)


def test_a_producer_that_never_spoke_is_asked_for() -> None:
    assert "no producer has reported" in explained()


def test_producers_and_their_limit_are_named() -> None:
    done = ProducerProgress(run_id="a", groups_emitted=8, group_size=2, is_finished=True)
    text = explained(stats=replace(NOTHING, emit_limit=8), producers=(done,))
    assert "run 'a' has emitted 8 groups and is finished, 8 may be emitted" in text


def test_workers_that_fell_silent_are_not_alive() -> None:
    assert "no rollout worker is alive (1 fell silent)" in explained(workers=(worker("a", updated_at=80),))
    alive = (worker("a", updated_at=80), worker("b", updated_at=99, running=5))
    assert "1 rollout workers are alive with 5 running episodes" in explained(workers=alive)


def test_who_reads_scored_trajectories_hears_of_scorers() -> None:
    scorer = WorkerStatus(worker_id="s", role="scorer", state="running", updated_at=99.0, stats={"held": 7.0})
    assert "scorer" not in explained(workers=(scorer,))
    assert "no scorer is alive (0 fell silent): `rollstream scorer`" in explained(needs_scorers=True)
    assert "1 scorers are alive and hold 7 trajectories" in explained(workers=(scorer,), needs_scorers=True)


def test_a_batch_that_is_held_back_says_for_whom() -> None:
    held_for = (AwaitedGroup(GroupKey("run", 3), 4), AwaitedGroup(GroupKey("run", 5), 4))
    text = explained(stats=replace(NOTHING, groups_ready=4), held_for=held_for)
    assert "held back for group 3 of run 'run' and 1 more, which can be trained on up to version 4" in text
    assert "held back" not in explained()


def test_replacements_that_are_awaited_are_named() -> None:
    assert "group 0 of run 'run' lacks replacements of members [1]" in explained(open_groups=1, wanted={1: 2})
