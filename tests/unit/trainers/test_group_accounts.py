"""Every group that is emitted ends once, as trained on or dropped for one reason, and its place is given back once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream_state import PublishedPolicy, StreamState, StreamStats

Make = Callable[..., Trajectory]
LINEAGE = 7
DEADLINE_S = 10.0
POLICY = PublishedPolicy(uri="somewhere", manifest_sha256="0" * 64)


@dataclass
class Outcome:
    """What became of the groups of a run."""

    trained: list[int]
    members: int
    stats: StreamStats


def member(make: Make, group: int, index: int, size: int, random: Random, *, replacement: int = 0) -> Trajectory | None:
    """One of everything that may come of a task; None: nothing ever."""
    fate = random.choice(["well", "well", "well", "failed", "unscored", "truncated", "long", "old", "lost"])
    if fate == "lost":
        return None
    return make(
        group,
        index,
        group_size=size,
        is_failed=fate == "failed",
        reward=None if fate == "unscored" else float(random.random() < 0.5),
        is_truncated=fate == "truncated",
        tokens=20 if fate == "long" else 2,
        lineage=99 if fate == "old" else 0,
        replacement=replacement,
    )


def run(make: Make, sizes: list[int], seed: int, options: dict[str, object], *, restarts: bool = False) -> Outcome:
    """A group per size; records in any order, some twice, some never; deadlines pass when all is read."""
    random = Random(seed)
    chosen = TrainerSettings.model_validate({"group_deadline_s": DEADLINE_S, **options})
    former = BatchFormer(chosen, "trajectories")
    former.open_lineage(LINEAGE, is_restored=False)
    former.begin_at({0: 0})
    records = [
        record
        for group, size in enumerate(sizes)
        for index in range(size)
        if (record := member(make, group, index, size, random)) is not None
    ]
    records += random.sample(records, len(records) // 4)
    random.shuffle(records)
    progress = ProducerProgress(run_id="run", groups_emitted=len(sizes), group_size=max(sizes), is_finished=True)
    former.note_progress(progress, now_s=0)
    log: list[Trajectory] = []
    trained: list[int] = []
    members = 0
    clock_s = 0.0
    while not former.has_ended:
        if records:
            log.append(records.pop())
            former.add(log[-1], 0, len(log) - 1, clock_s)
        else:
            clock_s += DEADLINE_S
            former.expire(clock_s)
        for wanted in [w for all_of_run in former.wanted().values() for w in all_of_run]:
            key = (wanted.group_index, wanted.member_index, wanted.replacement)
            if not any((r.group_index, r.member_index, r.replacement) == key for r in (*records, *log)):
                replacement = member(
                    make, key[0], key[1], sizes[wanted.group_index], random, replacement=wanted.replacement
                )
                records += [replacement] if replacement is not None else []
        if restarts and random.random() < 0.1:
            former = restarted(former, chosen, progress, log, clock_s)
        batch = former.next_batch()
        if batch is not None:
            trained += [group.group_index for group in batch.groups]
            members += sum(len(group.trajectories) for group in batch.groups)
            former.published(former.version + 1, POLICY)
        expected = (chosen.pipeline_depth + 1) * chosen.groups_per_batch
        assert former.emit_limit == expected + len(trained) + former.stats().groups_dropped
    return Outcome(trained, members, former.stats())


def restarted(
    former: BatchFormer, chosen: TrainerSettings, progress: ProducerProgress, log: list[Trajectory], now_s: float
) -> BatchFormer:
    state = StreamState.from_dict(former.state().to_dict(), topic="trajectories", run_id=None)
    again = BatchFormer(chosen, "trajectories", state)
    again.open_lineage(LINEAGE, is_restored=True)
    again.note_progress(progress, now_s=now_s)
    for offset in range(state.positions[0], len(log)):
        again.add(log[offset], 0, offset, now_s)
    return again


OPTIONS = st.fixed_dictionaries(
    {
        "groups_per_batch": st.integers(1, 4),
        "pipeline_depth": st.integers(0, 3),
        "min_members": st.integers(1, 4),
        "max_staleness": st.sampled_from([None, 0, 2, 50]),
        "partial_groups": st.sampled_from(["drop", "keep", "backfill"]),
        "backfill_rounds": st.integers(1, 3),
        "truncated": st.sampled_from(["keep", "drop_member", "drop_group"]),
        "max_sample_tokens": st.sampled_from([None, 10]),
        "drop_zero_variance": st.booleans(),
        "buffer_bytes": st.sampled_from([1, 2**31]),
    }
)


@settings(max_examples=120, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=10),
    seed=st.integers(0, 2**16),
    options=OPTIONS,
    restarts=st.booleans(),
)
def test_every_group_is_trained_on_or_dropped_for_one_reason_and_gives_its_place_back_once(
    sizes: list[int], seed: int, options: dict[str, object], restarts: bool, make_trajectory: Make
) -> None:
    outcome = run(make_trajectory, sizes, seed, options, restarts=restarts)
    assert len(set(outcome.trained)) == len(outcome.trained)
    assert len(outcome.trained) == outcome.stats.groups_consumed
    assert len(outcome.trained) + outcome.stats.groups_dropped == len(sizes)
    assert outcome.stats.groups_dropped == sum(outcome.stats.drops.values())
    assert (outcome.stats.groups_open, outcome.stats.groups_ready, outcome.stats.buffered_bytes) == (0, 0, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("partial", ["drop", "keep", "backfill"])
def test_groups_of_any_size_come_to_their_end(make_trajectory: Make, size: int, partial: str) -> None:
    options: dict[str, object] = {"groups_per_batch": 2, "partial_groups": partial, "min_members": 1}
    outcome = run(make_trajectory, [size] * 12, size, {**options, "max_staleness": None})
    assert len(outcome.trained) + outcome.stats.groups_dropped == 12
    closed = (12 - outcome.stats.lost) * size
    excluded = sum(outcome.stats.members_excluded.values())
    well_and_dropped = closed - outcome.members - excluded - outcome.stats.members_missing
    if partial == "drop":
        assert 0 <= well_and_dropped <= outcome.stats.drops["partial"] * (size - 1)
    else:
        assert well_and_dropped == 0, "one good member is enough here"


def test_reasons_are_told_apart(make_trajectory: Make) -> None:
    """Over many seeds every reason occurs, so the properties above are about all of them."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        options: dict[str, object] = {
            "groups_per_batch": 2,
            "max_staleness": 50,
            "truncated": "drop_group" if seed % 2 else "drop_member",
            "max_sample_tokens": 10,
            "drop_zero_variance": True,
            "partial_groups": "drop" if seed % 3 == 0 else "keep",
        }
        stats = run(make_trajectory, [1, 2, 3, 4], seed, options).stats
        seen.update({drop: count for drop, count in stats.drops.items() if count})
    assert set(seen) == {"failed", "partial", "truncated", "overlong", "stale", "zero_variance", "lost"}
