from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rollstream.cli.demo.facts import TrajectoryFacts, split_evenly, tokens_per_s, trajectory_facts
from rollstream.cli.demo.flow import Flow, FlowMessage, FlowSnapshot
from rollstream.cli.demo.picture import flow_line, flow_panel, sparkline, summary_panel
from rollstream.cli.demo.plots import curve, draw_curves
from rollstream.cli.demo.summary import edges, summarise
from rollstream.cli.task_ledger import TaskLedger
from rollstream.schemas.control import PolicyVersion, ProducerProgress, TrainerProgress, WorkerStatus
from rollstream.schemas.ids import group_id, trajectory_id
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.schemas.tools import ToolCall, ToolResult
from rollstream.schemas.trajectories import Sample, Trajectory, Turn, VersionSpan

Order = tuple[int, int, int]
LINEAGE = 7


def trajectory(
    index: int, *, reward: float | None = 1.0, calls: int = 1, is_malformed: bool = False, version: int = 0
) -> Trajectory:
    sample = Sample(
        prompt_ids=np.arange(3, dtype=np.int32),
        response_ids=np.arange(6, dtype=np.int32),
        response_mask=np.array([1, 1, 1, 0, 0, 1], dtype=np.uint8),
        response_logprobs=np.zeros(6, dtype=np.float32),
        version_spans=[VersionSpan(0, 3, version, LINEAGE), VersionSpan(5, 6, version, LINEAGE)],
        turns=[Turn(start=0, end=3, finish_reason="stop", tool_calls=calls, is_malformed=is_malformed)],
    )
    group, member = divmod(index, 8)
    return Trajectory(
        run_id="run",
        trajectory_id=trajectory_id("run", group, member),
        group_id=group_id("run", group),
        group_index=group,
        group_size=8,
        member_index=member,
        status="completed" if reward is not None else "failed",
        stop_reason="stop" if reward is not None else "infrastructure",
        samples=[sample],
        reward=reward,
        lineage=LINEAGE,
        policy_version_min=version,
        policy_version_max=version,
    )


def task(index: int) -> RolloutTask:
    group, member = divmod(index, 8)
    return RolloutTask(
        run_id="run",
        group_id=group_id("run", group),
        group_index=group,
        group_size=8,
        member_index=member,
        trajectory_id=trajectory_id("run", group, member),
        messages=[ChatMessage(role="user", content="?")],
    )


def policy(version: int) -> PolicyVersion:
    return PolicyVersion(version=version, lineage=LINEAGE, uri=f"policies/{version}", manifest_sha256="0" * 64)


def fact(index: int, reward: float | None = 1.0) -> TrajectoryFacts:
    return trajectory_facts(trajectory(index, reward=reward), (1000 * index, 0, index), None)


def a_run(rewards: list[float | None], seen: int | None = None) -> list[tuple[FlowMessage, Order]]:
    """Tasks, then one trajectory per second for the first ``seen`` of them; a policy version before every eighth."""
    records: list[tuple[FlowMessage, Order]] = [(task(i), (0, 0, i)) for i in range(len(rewards))]
    for index, reward in list(enumerate(rewards))[:seen]:
        if index % 8 == 0:
            records.append((policy(index // 8), (1000 * index, 0, index)))
        records.append((trajectory(index, reward=reward, version=max(0, index // 8 - 1)), (1000 * index, 1, index)))
    return records


def test_facts_tell_calls_tokens_and_staleness_of_a_trajectory() -> None:
    facts = trajectory_facts(trajectory(0, calls=0, is_malformed=True, version=3), (5, 0, 0), policy(5))
    assert (facts.has_tool_call, facts.is_well_formed) == (False, False)
    assert (facts.sampled_tokens, facts.staleness, facts.timestamp_s) == (4, 2, 0.005)


def test_a_version_of_another_lineage_has_no_staleness() -> None:
    other = PolicyVersion(version=9, lineage=LINEAGE + 1, uri="x", manifest_sha256="0" * 64)
    assert trajectory_facts(trajectory(0, version=3), (0, 0, 0), other).staleness == 0


@given(st.integers(0, 300), st.integers(1, 60))
def test_stretches_cover_everything_once_in_order_and_none_is_empty(count: int, parts: int) -> None:
    facts = [fact(index) for index in range(count)]
    stretches = split_evenly(facts, parts)
    assert [item for stretch in stretches for item in stretch] == facts
    assert all(stretches)
    assert len(stretches) == min(count, parts)
    assert max(map(len, stretches), default=0) - min(map(len, stretches), default=0) <= 1


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=120), st.data())
def test_the_summary_counts_every_task_and_scores_the_first_and_last_tenth(
    rewards: list[float | None], data: st.DataObject
) -> None:
    seen = data.draw(st.integers(1, len(rewards)))
    flow = Flow(TaskLedger())
    for message, order in a_run(rewards, seen):
        flow.see(message, order)
    summary = summarise(flow, name="n", seed=1, steps=2, wall_s=3)
    tenth = max(1, seen // 10)
    first = [reward for reward in rewards[:tenth] if reward is not None]
    last = [reward for reward in rewards[seen - tenth : seen] if reward is not None]
    assert summary.reward_first == (pytest.approx(sum(first) / len(first), abs=1e-4) if first else None)
    assert summary.reward_last == (pytest.approx(sum(last) / len(last), abs=1e-4) if last else None)
    assert summary.trajectories_produced == seen
    assert summary.lost == len(rewards) - seen
    assert summary.failed == rewards[:seen].count(None)
    assert summary.policy_versions == (seen + 7) // 8
    assert summary.duplicates_dropped == 0


@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_repeated_records_and_the_order_of_partitions_change_no_figure(shuffle: random.Random, count: int) -> None:
    rewards: list[float | None] = [index / count for index in range(count)]
    records = [record for record in a_run(rewards) if not isinstance(record[0], PolicyVersion)]
    straight, mixed = Flow(TaskLedger()), Flow(TaskLedger())
    for message, order in records:
        straight.see(message, order)
    again = [(message, (order[0] + 10**9, *order[1:])) for message, order in records]
    shuffle.shuffle(records)
    for message, order in [*records, *again]:
        mixed.see(message, order)
    expected = summarise(straight, name="n", seed=1, steps=2, wall_s=3)
    found = summarise(mixed, name="n", seed=1, steps=2, wall_s=3)
    assert found.duplicates_dropped == count
    assert (found.reward_first, found.reward_last) == (expected.reward_first, expected.reward_last)
    assert (found.reward_first_in_log, found.reward_last_in_log) == (found.reward_first, found.reward_last)
    assert found.trajectories_produced == expected.trajectories_produced == count


def test_long_episodes_that_end_last_do_not_make_a_policy_look_better() -> None:
    flow = Flow(TaskLedger())
    for place, index in enumerate([*range(0, 80, 2), *range(1, 80, 2)]):
        flow.see(trajectory(index, reward=float(index % 2)), (place, 0, place))
    summary = summarise(flow, name="n", seed=1, steps=2, wall_s=3)
    assert (summary.reward_first, summary.reward_last) == (0.5, 0.5)
    assert (summary.reward_first_in_log, summary.reward_last_in_log) == (0.0, 1.0)


def test_an_empty_run_has_a_summary(tmp_path: Path) -> None:
    summary = summarise(Flow(TaskLedger()), name="n", seed=1, steps=2, wall_s=3)
    assert (summary.reward_first, summary.trajectories_produced, summary.tokens_per_s) == (None, 0, 0.0)
    summary.write(tmp_path / "summary.json")
    assert json.loads((tmp_path / "summary.json").read_text())["lost"] == 0


def test_consumed_trajectories_are_the_groups_the_trainer_took() -> None:
    flow = Flow(TaskLedger())
    flow.see(ProducerProgress(run_id="run", groups_emitted=9, group_size=8), (0, 0, 0))
    progress = TrainerProgress(
        trainer_id="t", lineage=LINEAGE, version=2, groups_consumed=5, groups_dropped=1, emit_limit=None
    )
    flow.see(progress, (0, 0, 1))
    assert summarise(flow, name="n", seed=1, steps=2, wall_s=3).trajectories_consumed == 40


def test_the_snapshot_counts_calls_results_and_running_episodes_of_living_workers() -> None:
    flow = Flow(TaskLedger())
    call = ToolCall(
        call_id="c", session_id=None, turn=0, token=None, tool="calculator", arguments="{}", deadline=1.0,
        timeout_s=1.0, reply_topic="r", reply_partition=0,
    )  # fmt: skip
    flow.see(call, (0, 0, 0))
    flow.see(ToolResult(call_id="c", session_id=None, status="ok", content="1"), (0, 0, 0))
    for status in (
        WorkerStatus(worker_id="a", role="rollout-worker", state="running", running=3),
        WorkerStatus(worker_id="b", role="rollout-worker", state="draining", running=2),
        WorkerStatus(worker_id="c", role="rollout-worker", state="running", running=1),
        WorkerStatus(worker_id="c", role="rollout-worker", state="stopped", running=1),
        WorkerStatus(worker_id="d", role="tool-worker", state="running", running=9),
    ):
        flow.see(status, (0, 0, 0))
    snapshot = flow.snapshot(now_s=0.0)
    assert (snapshot.tool_calls, snapshot.tool_results, snapshot.episodes_running) == (1, 1, 5)


def test_speed_is_sampled_tokens_over_the_span_of_arrivals() -> None:
    assert tokens_per_s([fact(index) for index in range(11)]) == pytest.approx(44 / 10)
    assert tokens_per_s([fact(0)]) == 0.0


def test_the_speed_of_the_moment_forgets_what_is_older_than_ten_seconds() -> None:
    flow = Flow(TaskLedger())
    for message, order in a_run([1.0] * 30):
        flow.see(message, order)
    assert flow.snapshot(now_s=29.0).tokens_per_s == pytest.approx(11 * 4 / 10)
    assert flow.snapshot(now_s=500.0).tokens_per_s == 0.0


@given(st.lists(st.floats(-1, 2), max_size=50))
def test_a_sparkline_has_one_block_per_value_and_rises_with_it(values: list[float]) -> None:
    assert len(sparkline(values)) == len(values)
    assert sparkline(sorted(values)) == "".join(sorted(sparkline(values)))


def test_a_curve_leaves_gaps_out_and_counts_trajectories() -> None:
    facts = [fact(0, None), fact(1, 0.5), fact(2, 1.0)]
    assert curve(facts, lambda part: part[0].reward) == ([2, 3], [0.5, 1.0])


def test_edges_are_tenths_and_never_empty() -> None:
    facts = [fact(index) for index in range(25)]
    assert edges(facts) == (facts[:2], facts[-2:])
    assert edges(facts[:1]) == (facts[:1], facts[:1])
    assert edges([]) == ([], [])


@pytest.mark.parametrize("width", [40, 80, 200])
def test_pictures_can_be_drawn_before_and_after_the_first_record(width: int) -> None:
    flow = Flow(TaskLedger())
    for message, order in a_run([0.25] * 20):
        flow.see(message, order)
    console = Console(width=width, record=True, file=io.StringIO())
    for snapshot in (FlowSnapshot(), flow.snapshot(20.0)):
        console.print(flow_panel(snapshot, title="demo", elapsed_s=3, phases=[("broker", "ready")], steps=9))
    console.print(summary_panel(summarise(flow, name="n", seed=1, steps=2, wall_s=3), "runs/n"))
    text = console.export_text()
    assert "mean reward" in text
    assert "0.25" in flow_line(flow.snapshot(20.0), 3.0)


def test_curves_are_drawn_to_a_png(tmp_path: Path) -> None:
    draw_curves([fact(index, index / 20) for index in range(20)], tmp_path / "curves.png", "demo")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@given(st.randoms(use_true_random=False))
def test_the_staleness_on_arrival_is_the_same_in_whatever_order_topics_are_read_anew(shuffled: random.Random) -> None:
    records: list[tuple[FlowMessage, Order]] = [(policy(version), (100 * version, 0, version)) for version in range(6)]
    records += [(trajectory(index, version=index // 4), (40 * index + 1, 1, index)) for index in range(20)]
    in_order, mixed = Flow(TaskLedger()), Flow(TaskLedger())
    for message, place in sorted(records, key=lambda record: record[1]):
        in_order.see(message, place)
    shuffled.shuffle(records)
    for message, place in records:
        mixed.see(message, place)
    expected = [fact.staleness for fact in in_order.in_task_order()]
    assert [fact.staleness for fact in mixed.in_task_order()] == expected
    assert expected == [max(0, min(5, (40 * index + 1) // 100) - index // 4) for index in range(20)]
