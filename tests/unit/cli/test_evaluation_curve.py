from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.cli.evaluation.curve import Curve, is_due
from rollstream.cli.evaluation.policies import policy_facts
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation import Evaluation, EvaluationReport, PromptResult
from rollstream.trainers.evaluation.report import EpisodeCounts, PolicyFacts


def announced(lineage: int, version: int, weights: str = "") -> PolicyVersion:
    return PolicyVersion(
        lineage=lineage,
        version=version,
        uri=f"runs/{lineage}-{version}",
        manifest_sha256=weights or f"{lineage}-{version}",
    )


def evaluated(policies: list[PolicyVersion], *, every: int) -> list[tuple[int, int]]:
    last: PolicyFacts | None = None
    found: list[tuple[int, int]] = []
    for policy in policies:
        if is_due(policy, last, every=every):
            last = policy_facts("followed", policy)
            found.append((policy.lineage, policy.version))
    return found


def test_every_nth_version_is_due() -> None:
    assert evaluated([announced(1, v) for v in range(1, 12)], every=4) == [(1, 1), (1, 5), (1, 9)]
    assert evaluated([announced(1, v) for v in (1, 2, 7, 8, 11)], every=4) == [(1, 1), (1, 7), (1, 11)]


def test_a_restored_trainer_begins_anew_but_its_old_weights_are_not_evaluated_twice() -> None:
    history = [announced(1, 4), announced(9, 4, weights="1-4"), announced(9, 5), announced(9, 6)]
    assert evaluated(history, every=1) == [(1, 4), (9, 5), (9, 6)]
    assert evaluated(history, every=10) == [(1, 4), (9, 5)]


def test_a_trainer_that_was_replaced_and_still_speaks_is_not_heard() -> None:
    assert evaluated([announced(5, 1), announced(3, 9), announced(5, 1), announced(5, 2)], every=1) == [(5, 1), (5, 2)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=40), st.integers(1, 8))
def test_points_only_go_forward_and_stand_far_enough_apart(history: list[tuple[int, int]], every: int) -> None:
    points = evaluated([announced(*place) for place in history], every=every)
    for before, after in pairwise(points):
        assert before < after
        assert after[0] > before[0] or after[1] - before[1] >= every
    if history:
        assert points[0] == history[0]


def report(version: int) -> EvaluationReport:
    evaluation = Evaluation(
        name="tiny",
        run_ids=["run"],
        policy=policy_facts("followed", announced(1, version)),
        episodes=EpisodeCounts(wanted=1, completed=1),
        environments={},
        prompts=[PromptResult(environment="e", prompt="p", episodes=1, rewards=[1.0], solved=1, values={"reward": 1})],
    )
    return EvaluationReport(evaluations=[evaluation])


def test_a_curve_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "curve.jsonl"
    curve = Curve(path)
    assert curve.last is None
    curve.append(report(1))
    curve.append(report(2))
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"format": "rollstr')
    again = Curve(path)
    assert again.last is not None
    assert (again.last.version, len(again.points)) == (2, 2)
    assert path.read_bytes() == whole
    again.append(report(3))
    assert [point.evaluations[0].policy.version for point in Curve(path).points] == [1, 2, 3]


def test_a_point_holds_no_single_prompts(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    Curve(path).append(report(1))
    assert Curve(path).points[0].evaluations[0].prompts == []


def test_a_file_that_is_no_curve_is_left_alone_and_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(SettingsError, match=r"notes.jsonl:1"):
        Curve(path)
    assert path.read_text() == '{"a": 1}\n'
