"""What is written into files is read back to the last bit."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (pyarrow is not annotated)

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollstream.schemas import ids
from rollstream.schemas.codec import encode
from rollstream.schemas.errors import InvalidMessageError, SettingsError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import Sample, Timing, Trajectory, TrajectoryError, Turn, VersionSpan
from rollstream.trainers.trajectory_reading import read_trajectories
from rollstream.trainers.trajectory_rows import ROW_SCHEMA, json_row, trajectory_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHOLE = st.integers(0, 5) | st.integers(0, 2**63 - 1)
NUMBER = st.floats(allow_nan=False)
"""NaN is unequal to itself; infinity takes the same way."""
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | NUMBER | TEXT | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def samples(draw: st.DrawFn, index: int, lineage: int, versions: tuple[int, int]) -> Sample:
    length = draw(st.integers(1, 6))
    is_trainable = draw(st.booleans())
    start, end = sorted(draw(st.tuples(st.integers(0, length), st.integers(0, length))))
    spans = [VersionSpan(start, end, draw(st.integers(*versions)), lineage)] if start < end else []
    mask = np.zeros(length, dtype=np.uint8)
    mask[start:end] = 1
    drawn = -draw(st.floats(0, 50, width=32)) if is_trainable else draw(st.sampled_from([-np.inf, 3.0]))
    return Sample(
        prompt_ids=np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3)), dtype=np.int32),
        response_ids=np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length)), np.int32),
        response_mask=mask,
        response_logprobs=np.where(mask, drawn, 0).astype(np.float32),
        version_spans=spans,
        turns=[Turn(start=start, end=end, finish_reason="stop", generate_s=draw(NUMBER), is_malformed=True)],
        is_trainable=is_trainable,
        parent_sample=draw(st.integers(0, index - 1)) if index and draw(st.booleans()) else None,
        fork_reason=draw(st.none() | TEXT),
    )


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    is_failed = draw(st.booleans())
    lineage, versions = draw(WHOLE), draw(st.sampled_from([(0, 0), (3, 9), (2**40, 2**40)]))
    group, member, replacement = draw(WHOLE), draw(st.integers(0, 3)), draw(WHOLE)
    count = 0 if is_failed else draw(st.integers(1, 3))
    return Trajectory(
        run_id="run",
        trajectory_id=ids.trajectory_id("run", group, member, replacement),
        group_id=ids.group_id("run", group),
        group_index=group,
        group_size=4,
        member_index=member,
        replacement=replacement,
        status="failed" if is_failed else "completed",
        stop_reason="infrastructure" if is_failed else "stop",
        samples=[draw(samples(index, lineage, versions)) for index in range(count)],
        reward=None if is_failed else draw(st.none() | st.floats(-1e300, 1e300)),
        rewards=draw(st.dictionaries(TEXT, st.floats(-1.0, 1.0), max_size=2)),
        metrics=draw(st.dictionaries(TEXT, NUMBER, max_size=2)),
        error=TrajectoryError(type="E", message=draw(TEXT)) if is_failed else None,
        is_train=draw(st.booleans()),
        num_turns=draw(WHOLE),
        attempt=draw(WHOLE),
        birth=draw(WHOLE),
        lineage=lineage,
        policy_version_min=versions[0],
        policy_version_max=versions[1],
        sampling=SamplingParams(temperature=draw(st.floats(0, 9)), max_tokens=draw(st.integers(1, 99))),
        timing=Timing(created_at=draw(NUMBER), tool_s=1.5),
        data_source=draw(TEXT),
        extra=draw(st.dictionaries(TEXT, ANYTHING, max_size=3)),
    )


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_bytes(b"".join(map(json_row, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@given(written=st.lists(trajectories(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back_to_the_last_bit(written: list[Trajectory], ending: str, tmp_path: Path) -> None:
    rows = [row for place, trajectory in enumerate(written) for row in trajectory_rows(trajectory, 0, place)]
    write(tmp_path / f"part.{ending}", rows)
    read = list(read_trajectories(str(tmp_path)))
    assert [encode(trajectory) for trajectory in read] == [encode(trajectory) for trajectory in written]


def test_only_what_columns_cannot_say_is_written_twice(make_trajectory: Any) -> None:
    plain = make_trajectory(0, 0)
    assert [row["exact"] for row in trajectory_rows(plain, 0, 0)] == [None]
    odd = msgspec.structs.replace(plain, extra={"picture": b"\x89"})
    assert [row["exact"] is None for row in trajectory_rows(odd, 0, 0)] == [False]


def test_arrays_in_extra_come_back_as_arrays(make_trajectory: Any, tmp_path: Path) -> None:
    odd = msgspec.structs.replace(make_trajectory(0, 0), extra={"routing": np.arange(3, dtype=np.int32)})
    write(tmp_path / "part.parquet", list(trajectory_rows(odd, 0, 0)))
    [read] = read_trajectories(str(tmp_path / "part.parquet"))
    np.testing.assert_array_equal(read.extra["routing"], [0, 1, 2])


def test_a_reader_takes_what_it_is_asked_for(make_trajectory: Any, tmp_path: Path) -> None:
    written = [
        make_trajectory(0, 0, run_id="a", reward=1.0),
        make_trajectory(1, 0, run_id="a", reward=0.25),
        make_trajectory(2, 0, run_id="a", is_failed=True),
        make_trajectory(0, 0, run_id="b", reward=None),
    ]
    write(tmp_path / "part-1.jsonl", [row for each in written for row in trajectory_rows(each, 0, 0)])
    (tmp_path / "_archive.jsonl").write_text("no trajectory")

    def found(**filters: Any) -> list[tuple[str, int]]:
        return [(each.run_id, each.group_index) for each in read_trajectories(tmp_path.as_uri(), **filters)]

    assert found() == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert found(run_id="b") == [("b", 0)]
    assert found(status=["failed"]) == [("a", 2)]
    assert found(min_reward=0.5) == [("a", 0)]


def test_a_table_of_before_has_the_defaults_of_what_it_lacks(make_trajectory: Any, tmp_path: Path) -> None:
    rows = list(trajectory_rows(make_trajectory(0, 0), 0, 0))
    table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    pq.write_table(table.drop_columns(["replacement", "birth", "exact", "fork_reason"]), tmp_path / "part.parquet")
    [read] = read_trajectories(str(tmp_path))
    assert (read.replacement, read.birth, read.samples[0].fork_reason) == (0, 0, None)


def test_damaged_and_missing_files_are_named(make_trajectory: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no trajectories at"):
        list(read_trajectories(str(tmp_path)))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), buffer)
    for name, body in {"a.parquet": b"torn", "b.parquet": buffer.getvalue(), "c.jsonl": b'{"run_id": "r"'}.items():
        (tmp_path / name).write_bytes(body)
        with pytest.raises(InvalidMessageError, match=name):
            list(read_trajectories(str(tmp_path / name)))


def test_a_trajectory_over_two_files_is_one_and_half_of_it_is_none(make_trajectory: Any, tmp_path: Path) -> None:
    sample = make_trajectory(0, 0).samples[0]
    forked = msgspec.structs.replace(make_trajectory(0, 0), samples=[sample, sample])
    first, second = trajectory_rows(forked, 0, 0)
    write(tmp_path / "part-0.parquet", [first])
    write(tmp_path / "part-1.parquet", [second])
    assert [len(read.samples) for read in read_trajectories(str(tmp_path))] == [2]
    with pytest.raises(InvalidMessageError, match="lacks the samples before its sample 1"):
        list(read_trajectories(str(tmp_path / "part-1.parquet")))
