"""The journal's rules: the first record with a key counts, whoever wrote it, and the floor hides nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.journal import AttemptFailure, JournalKind, JournalRecord, StartFacts, TerminalRecord
from rollstream.transport.journal.journal import REMEMBERED_TASKS, MemoryJournal, held
from rollstream.transport.journal.partition_fold import PartitionFold, floor_text, read_floor
from rollstream.transport.journal.task_state import AttemptOverError, StartKey, TaskState

FAILURE = msgspec.msgpack.encode(AttemptFailure(kind="infrastructure", type="X", message="x"))


def end_payload(text: str = "t") -> bytes:
    end = TerminalRecord(value=text.encode(), headers=[], key="g", partition=0, status="completed")
    return msgspec.msgpack.encode(end)


@dataclass
class Partition:
    """A journal being written."""

    fold: PartitionFold = field(default_factory=lambda: PartitionFold(10))
    records: list[JournalRecord] = field(default_factory=list[JournalRecord])

    def write(
        self, kind: JournalKind, key: str = "", *, of: str = "t", attempt: int = 1, birth: int | None = None,
        payload: bytes = b"", writer: str = "w", task_offset: int = 0,
    ) -> bool:  # fmt: skip
        if kind == "start":
            payload = msgspec.msgpack.encode(StartFacts(started_at=float(len(self.records))))
        record = JournalRecord(
            kind=kind, trajectory_id=of, attempt=attempt, key=key, birth=birth, payload=payload, writer=writer,
            task_offset=task_offset,
        )  # fmt: skip
        self.records.append(record)
        return self.fold.apply(self.fold.position, record)

    @property
    def state(self) -> TaskState:
        return self.fold.tasks["t"]


def begun() -> Partition:
    partition = Partition()
    assert partition.write("start", "1/1/w")
    return partition


def test_the_first_effect_with_a_path_counts_whoever_wrote_it() -> None:
    journal = begun()
    assert journal.write("effect", "0", birth=10, payload=b"one", writer="zombie")
    assert not journal.write("effect", "0", birth=10, payload=b"two")
    assert journal.state.effects["0"].payload == b"one"


def test_what_was_born_elsewhere_is_void() -> None:
    journal = begun()
    assert not journal.write("effect", "0", birth=9)
    assert not journal.write("attempt_end", "0", birth=9, payload=FAILURE)
    assert not journal.write("end", birth=9, payload=end_payload())
    assert not journal.write("done", birth=9)
    assert journal.state.attempt == 1


def test_a_failure_takes_the_slot_of_its_effect_and_never_beats_a_success() -> None:
    journal = begun()
    assert journal.write("effect", "1", birth=10)
    assert not journal.write("attempt_end", "1", birth=10, payload=FAILURE)
    assert journal.write("attempt_end", "2", birth=10, payload=FAILURE)
    assert (journal.state.attempt, journal.state.infra, journal.state.effects) == (2, 1, {})
    assert not journal.write("effect", "3", birth=10)
    assert not journal.write("attempt_end", "4", birth=10, payload=FAILURE)


def test_an_attempt_is_born_with_its_first_start_and_resumed_by_others() -> None:
    journal = begun()
    assert journal.write("start", "1/2/v", writer="v")
    assert journal.state.birth == 10
    assert journal.state.started_at == 0.0
    assert journal.write("attempt_end", birth=10, payload=FAILURE)
    assert journal.state.birth is None
    assert journal.write("start", "2/3/v", attempt=2)
    assert journal.state.births == {1: 10, 2: 13}


def test_starts_that_led_nowhere_count_until_there_is_progress() -> None:
    journal = begun()
    journal.write("start", "1/2/v")
    journal.write("start", "1/3/u")
    assert journal.state.unclean == 3
    journal.write("released", "1/2/v", birth=10)
    assert journal.state.unclean == 2
    journal.write("effect", "0", birth=10)
    assert journal.state.unclean == 0
    journal.write("start", "1/4/w")
    journal.write("start", "1/4/v")
    assert journal.state.unclean == 1


def test_after_the_end_only_done_matters() -> None:
    journal = begun()
    journal.write("effect", "0", birth=10)
    assert journal.write("end", birth=10, payload=end_payload("one"))
    assert not journal.write("end", birth=10, payload=end_payload("two"))
    assert not journal.write("effect", "1", birth=10)
    assert not journal.write("attempt_end", birth=10, payload=FAILURE)
    assert not journal.write("start", "1/2/v")
    assert journal.state.end is not None
    assert journal.state.end.value == b"one"
    assert journal.write("done", birth=10)
    assert journal.state.is_done
    assert journal.state.end is None
    assert not journal.write("end", birth=10, payload=end_payload())
    assert not journal.write("effect", "1", birth=10)


def test_nothing_counts_before_a_start() -> None:
    journal = Partition()
    assert not journal.write("effect", "0", birth=10)
    assert journal.fold.tasks == {}
    assert journal.fold.position == 11


@pytest.mark.parametrize(
    ("kind", "key", "payload"), [("start", "1", b""), ("start", "a/b/c", b""), ("end", "", b"\xc1")]
)
def test_what_cannot_be_read_changes_nothing(kind: JournalKind, key: str, payload: bytes) -> None:
    journal = begun()
    with pytest.raises(InvalidMessageError):
        journal.write(kind, key, birth=10, payload=payload)
    assert journal.state.starts == {StartKey(1, 1, "w")}
    assert not journal.state.has_ended
    assert journal.fold.position == 12


def test_a_writer_learns_that_its_record_will_never_count() -> None:
    journal = begun()
    effect = JournalRecord(kind="effect", trajectory_id="t", attempt=1, key="0", writer="w", birth=10)
    assert held(journal.state, effect) is None
    journal.write("attempt_end", birth=10, payload=FAILURE)
    with pytest.raises(AttemptOverError, match="attempt 1 is over"):
        held(journal.state, effect)
    with pytest.raises(AttemptOverError, match="nothing is known"):
        held(None, effect)


@pytest.mark.parametrize("floor", [0, 7, 2**40])
def test_the_floor_travels_in_the_metadata_of_a_commit(floor: int) -> None:
    assert read_floor(floor_text(floor)) == floor


@pytest.mark.parametrize("metadata", ["", "journal-floor=", "journal-floor=-1", "something else"])
def test_other_metadata_is_no_floor(metadata: str) -> None:
    assert read_floor(metadata) is None


TASKS = tuple(f"t{n}" for n in range(4))


@st.composite
def histories(draw: st.DrawFn) -> list[JournalRecord]:
    """What workers, zombies among them, may write: any kinds, births and attempts, plausible or not."""
    partition = Partition(PartitionFold())
    for _ in range(draw(st.integers(0, 30))):
        of = draw(st.sampled_from(TASKS))
        state = partition.fold.tasks.get(of)
        attempt = draw(st.integers(1, 3)) if draw(st.booleans()) or state is None else state.attempt
        birth = (
            draw(st.integers(0, 40)) if state is None or draw(st.integers(0, 9)) == 0 else state.births.get(attempt, 0)
        )
        kind: JournalKind = draw(
            st.sampled_from(["start", "start", "effect", "effect", "attempt_end", "end", "done", "released"])
        )
        n = draw(st.integers(1, 6))
        key = f"{attempt}/{n}/{draw(st.sampled_from('vw'))}" if kind in ("start", "released") else str(n)
        payload = FAILURE if kind == "attempt_end" else end_payload(str(n)) if kind == "end" else b""
        partition.write(
            kind, key, of=of, attempt=attempt, birth=birth, payload=payload, task_offset=TASKS.index(of)
        )  # fmt: skip
    return partition.records


@given(histories(), st.integers(0, 4))
@settings(max_examples=100)
def test_reading_from_the_floor_says_the_same_of_every_task_that_is_not_committed(
    records: list[JournalRecord], committed: int
) -> None:
    whole = PartitionFold()
    for offset, record in enumerate(records):
        whole.apply(offset, record)
    floor = whole.floor(committed)
    rest = PartitionFold(floor)
    for offset in range(floor, len(records)):
        rest.apply(offset, records[offset])
    for of in TASKS[committed:]:
        assert rest.tasks.get(of) == whole.tasks.get(of)
    assert whole.floor(committed) <= whole.floor(committed + 1) <= whole.position


@given(histories())
@settings(max_examples=100)
def test_a_record_counts_exactly_if_its_writer_would_be_told_so(records: list[JournalRecord]) -> None:
    fold = PartitionFold()
    for offset, record in enumerate(records):
        before = fold.tasks.get(record.trajectory_id)
        try:
            would_count = held(before, record) is None
        except AttemptOverError:
            would_count = False
        assert fold.apply(offset, record) == would_count
        after = fold.tasks.get(record.trajectory_id)
        if would_count:
            assert after is not None
            assert after.holds(record)


@given(histories(), st.lists(st.integers(0, 5), max_size=40))
@settings(max_examples=100)
def test_copies_of_what_counts_change_nothing_when_they_land_late(
    records: list[JournalRecord], delays: list[int]
) -> None:
    once, twice = PartitionFold(), PartitionFold()
    late: list[tuple[int, JournalRecord]] = []
    for offset, record in enumerate(records):
        has_counted = once.apply(offset, record)
        twice.apply(offset, record)
        if has_counted and offset < len(delays):
            late.append((offset + delays[offset], record))
        for due, copy in late:
            if due == offset:
                twice.apply(offset, copy)
    assert once.tasks == twice.tasks


async def test_a_journal_in_memory_knows_what_it_was_told_and_forgets_old_tasks() -> None:
    journal = MemoryJournal()
    for number in range(REMEMBERED_TASKS + 2):
        id_ = f"t{number}"
        start = JournalRecord(
            kind="start", trajectory_id=id_, attempt=1, key="1/1/w", writer="w",
            payload=msgspec.msgpack.encode(StartFacts(started_at=1.0)),
        )  # fmt: skip
        birth = (await journal.append(start)).births[1]
        end = JournalRecord(
            kind="end", trajectory_id=id_, attempt=1, key="", writer="w", birth=birth, payload=end_payload()
        )
        await journal.append(end)
        state = await journal.append(msgspec.structs.replace(end, kind="done", payload=b""))
        assert state.is_done
    assert journal.state("t1") is None
    last = journal.state(f"t{REMEMBERED_TASKS + 1}")
    assert last is not None
    assert last.is_done
    assert MemoryJournal().state("t1") is None
