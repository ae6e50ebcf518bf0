"""What an archive knows of itself: ids as intervals, headers inside files, and when a part is due."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import InvalidMessageError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.archive.archived_ids import ArchivedIds
from rollstream.trainers.archive.part_encoding import encode_part, read_header
from rollstream.trainers.archive.partition_tail import PartitionTail, PartLimits
from rollstream.trainers.archive.parts import ArchiveManifest, check_manifest, first_offset_of, part_name
from rollstream.trainers.archive.settings import PartFormat

Make = Callable[..., Trajectory]
LIMITS = PartLimits(rows=3, size_bytes=10**6, age_s=60.0)


@given(members=st.sets(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 30), st.integers(0, 3)), max_size=60))
def test_a_set_of_ids_is_the_same_after_it_was_written(
    make_trajectory: Make, members: set[tuple[str, int, int]]
) -> None:
    archived = ArchivedIds()
    for run_id, group, member in members:
        archived.add(make_trajectory(group, member, run_id=run_id))
        archived.add(make_trajectory(group, member, run_id=run_id))

    read = ArchivedIds.decode(archived.encode())

    assert len(read) == len(members)
    for run_id in ("a", "b"):
        for group in range(31):
            for member in range(4):
                is_there = make_trajectory(group, member, run_id=run_id) in read
                assert is_there == ((run_id, group, member) in members)


def test_a_replacement_is_another_trajectory_and_a_foreign_id_is_kept_as_it_is(make_trajectory: Make) -> None:
    archived = ArchivedIds()
    foreign = msgspec.structs.replace(make_trajectory(0, 0), trajectory_id="theirs")
    archived.add(foreign)
    read = ArchivedIds.decode(archived.encode())
    assert foreign in read
    assert make_trajectory(0, 0) not in read
    assert msgspec.structs.replace(foreign, trajectory_id="others") not in read


def test_a_million_dense_ids_stand_in_a_few_bytes(make_trajectory: Make) -> None:
    archived = ArchivedIds()
    trajectory = make_trajectory(0, 0)
    for group in range(5_000):
        archived.add(make_trajectory(group, 0))
    assert trajectory in archived
    assert len(archived.encode()) < 100


@pytest.mark.parametrize("file_format", ["parquet", "jsonl"])
def test_a_part_carries_its_header(make_trajectory: Make, file_format: PartFormat) -> None:
    tail = PartitionTail("topic", 3, 100)
    for offset in range(100, 105):
        tail.add(make_trajectory(offset, 0) if offset != 102 else None, offset, 0.0)
    tail.add(make_trajectory(100, 0), 105, 0.0)

    body = encode_part(tail.header(), tail.held, file_format)
    header = read_header(lambda start, end: body[start:end], len(body), file_format)

    assert (header.first_offset, header.end_offset, header.trajectories) == (100, 106, 4)
    assert (header.undecodable, header.duplicates) == (1, 1)
    behind = PartitionTail.behind(header)
    assert (behind.first_offset, behind.next_offset) == (106, 106)
    assert make_trajectory(104, 0) in behind.archived
    for damaged in (body[: len(body) // 2], b"", b"x" * 100):
        with pytest.raises(InvalidMessageError, match="no header"):
            read_header(lambda start, end, given=damaged: given[start:end], len(damaged), file_format)


def test_a_part_is_due_when_it_is_full_or_old_and_begins_anew_when_it_is_written(make_trajectory: Make) -> None:
    tail = PartitionTail("topic", 0, 0)
    assert not tail.is_due(LIMITS, 1e9), "of nothing"
    tail.add(make_trajectory(0, 0), 0, 10.0)
    assert not tail.is_due(LIMITS, 69.0)
    assert tail.is_due(LIMITS, 70.0)
    for offset in (1, 2):
        tail.add(make_trajectory(offset, 0), offset, 11.0)
    assert tail.is_due(LIMITS, 11.0)
    assert tail.is_due(PartLimits(99, 1, 99.0), 11.0), "by its memory"
    tail.written()
    assert not tail.has_news
    tail.add(make_trajectory(1, 0), 1, 12.0)
    assert not tail.has_news, "what was taken in is old"
    tail.add(make_trajectory(1, 0), 3, 12.0)
    assert (tail.duplicates, len(tail.held)) == (1, 0)


def test_names_say_where_a_part_begins() -> None:
    name = part_name(7, 123, "parquet")
    assert first_offset_of(name) == 123
    assert first_offset_of("p00007/notes.txt") is None
    assert sorted([part_name(0, 9, "jsonl"), part_name(0, 10, "jsonl")])[0] == part_name(0, 9, "jsonl")


def test_another_archive_is_not_gone_on_with() -> None:
    mine = ArchiveManifest(topic="t", file_format="parquet", starts={})
    check_manifest(mine, mine, "here")
    for other in ({"topic": "u"}, {"file_format": "jsonl"}, {"layout": 2}):
        with pytest.raises(SettingsError, match="'here'"):
            check_manifest(msgspec.structs.replace(mine, **other), mine, "here")
