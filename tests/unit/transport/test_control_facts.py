"""The fold of the control topic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.control import (
    ControlMessage,
    Pause,
    PolicyVersion,
    ProducerProgress,
    TrainerProgress,
    TrainerStart,
    WorkerStatus,
)
from rollstream.transport.control import ControlFacts, control_key


def policy(lineage: int, version: int) -> PolicyVersion:
    return PolicyVersion(version=version, lineage=lineage, uri=f"/p/{version}", manifest_sha256="0")


def progress(lineage: int, version: int) -> TrainerProgress:
    return TrainerProgress(
        trainer_id="t", lineage=lineage, version=version, groups_consumed=0, groups_dropped=0, emit_limit=None
    )


def status(worker_id: str, running: int = 0) -> WorkerStatus:
    return WorkerStatus(worker_id=worker_id, role="rollout-worker", state="running", running=running)


def facts(*messages: ControlMessage) -> ControlFacts:
    folded = ControlFacts()
    for offset, message in enumerate(messages):
        folded.learn(control_key(message), offset, message)
    return folded


def test_keys_are_those_the_messages_promise() -> None:
    assert control_key(policy(0, 1)) == "policy"
    assert control_key(TrainerStart(trainer_id="a")) == "trainer-start/a"
    assert control_key(progress(0, 1)) == "trainer-progress"
    assert control_key(ProducerProgress(run_id="r", groups_emitted=1, group_size=1)) == "producer/r"
    assert control_key(Pause(is_paused=True)) == "pause"
    assert control_key(status("w")) == "worker/w"


def test_nothing_is_known_at_first() -> None:
    assert ControlFacts().latest(PolicyVersion) is None
    assert ControlFacts().all(WorkerStatus) == {}


def test_the_newest_of_each_key_is_known_and_types_do_not_mix() -> None:
    folded = facts(status("a", 1), status("b", 2), status("a", 3), Pause(is_paused=True), policy(0, 1))

    assert folded.all(WorkerStatus) == {"worker/a": status("a", 3), "worker/b": status("b", 2)}
    assert folded.latest(WorkerStatus) == (status("a", 3), 2)
    assert folded.latest(Pause) == (Pause(is_paused=True), 3)


def test_an_old_copy_of_a_progress_that_lands_last_changes_nothing() -> None:
    begun = ProducerProgress(run_id="r", groups_emitted=3, group_size=1, updated_at=1.0)
    finished = ProducerProgress(run_id="r", groups_emitted=3, group_size=1, is_finished=True, updated_at=2.0)
    grown = ProducerProgress(run_id="r", groups_emitted=3, group_size=1, updated_at=9.0)
    near = TrainerProgress(
        trainer_id="t", lineage=1, version=1, groups_consumed=1, groups_dropped=0, emit_limit=2, updated_at=1.0
    )
    far = TrainerProgress(
        trainer_id="t", lineage=1, version=1, groups_consumed=1, groups_dropped=1, emit_limit=3, updated_at=2.0
    )

    assert facts(begun, finished, begun).all(ProducerProgress) == {"producer/r": finished}
    assert facts(begun, finished, grown).all(ProducerProgress) == {"producer/r": grown}
    assert facts(near, far, near).latest(TrainerProgress) == (far, 1)


def test_the_offset_of_a_trainer_start_is_told_as_its_lineage() -> None:
    folded = facts(Pause(is_paused=False), TrainerStart(trainer_id="a"), TrainerStart(trainer_id="b"))

    assert folded.latest(TrainerStart) == (TrainerStart(trainer_id="b"), 2)


def test_a_replaced_trainer_that_still_writes_is_not_heard() -> None:
    folded = facts(policy(0, 9), policy(5, 9), progress(5, 9), policy(0, 10), progress(0, 11))

    assert folded.latest(PolicyVersion) == (policy(5, 9), 1)
    assert folded.latest(TrainerProgress) == (progress(5, 9), 2)


def test_a_tombstone_removes_a_fact() -> None:
    folded = facts(Pause(is_paused=True))
    folded.forget("pause")
    folded.forget("never known")

    assert folded.latest(Pause) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1))
def test_the_newest_policy_is_the_greatest_lineage_and_version(versions: list[tuple[int, int]]) -> None:
    latest = facts(*(policy(lineage, version) for lineage, version in versions)).latest(PolicyVersion)

    assert latest is not None
    assert (latest[0].lineage, latest[0].version) == max(versions)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9))))
def test_a_compacted_topic_tells_the_same_as_the_whole(statuses: list[tuple[str, int]]) -> None:
    messages = [(offset, status(worker, running)) for offset, (worker, running) in enumerate(statuses)]
    whole, compacted = ControlFacts(), ControlFacts()
    for offset, message in messages:
        whole.learn(control_key(message), offset, message)
    newest = {control_key(message): offset for offset, message in messages}
    for offset, message in messages:
        if newest[control_key(message)] == offset:
            compacted.learn(control_key(message), offset, message)

    assert compacted.all(WorkerStatus) == whole.all(WorkerStatus)
    assert compacted.latest(WorkerStatus) == whole.latest(WorkerStatus)
