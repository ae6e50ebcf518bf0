from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console, RenderableType

from rollstream.cli.evaluation.view import comparison_tables, report_tables
from rollstream.trainers.evaluation import Evaluation, EvaluationReport, PromptResult, against, summarize_environments
from rollstream.trainers.evaluation.report import EpisodeCounts, PolicyFacts


def evaluation(reward: float, *, digest: str = "d", **fields: Any) -> Evaluation:
    prompts = [
        PromptResult(
            environment="e",
            prompt=f"p:{index}",
            episodes=1,
            rewards=[reward + index],
            solved=0,
            values={"reward": reward + index, "metrics.depth": 1.0},
        )
        for index in range(5)
    ]
    known: dict[str, Any] = {"episodes": EpisodeCounts(wanted=5, completed=5), **fields}
    return Evaluation(
        name="tiny",
        run_ids=["run"],
        policy=PolicyFacts(asked_for="3:7", lineage=3, version=7, uri="u", manifest_sha256="m"),
        environments=summarize_environments(prompts),
        prompts=prompts,
        data_digests={"e": digest},
        **known,
    )


def printed(shown: Iterable[RenderableType]) -> str:
    console = Console(width=200, record=True, file=None)
    with console.capture() as capture:
        for one in shown:
            console.print(one)
    return capture.get()


def test_a_table_says_whose_figures_it_shows_and_leaves_details_to_who_asks() -> None:
    report = EvaluationReport(evaluations=[evaluation(1.0)])
    assert "tiny · e · policy 3:7" in printed(report_tables(report))
    assert "metrics.depth" not in printed(report_tables(report))
    assert "metrics.depth" in printed(report_tables(report, has_details=True))


@pytest.mark.parametrize(
    ("gain", "digest", "expected"),
    [(0.5, "d", "+0.5 (+0.5 … +0.5) *"), (0.0, "d", "+0 (+0 … +0)"), (0.5, "other", "~")],
)
def test_a_clear_difference_is_marked_and_so_is_one_without_pairs(gain: float, digest: str, expected: str) -> None:
    baseline = EvaluationReport(evaluations=[evaluation(1.0)])
    compared = against(evaluation(1.0 + gain, digest=digest), baseline, name="old.json")
    text = printed(report_tables(EvaluationReport(evaluations=[compared])))
    (row,) = [line for line in text.splitlines() if "reward" in line]
    assert expected in row
    assert ("*" in row) == (expected.endswith("*"))


def test_reports_stand_side_by_side_with_differences_to_the_first() -> None:
    first, second = (EvaluationReport(evaluations=[evaluation(reward)]) for reward in (1.0, 2.0))
    text = printed(comparison_tables([("a.json", first), ("b.json", second)]))
    assert "a.json" in text
    assert "+1 (+1 … +1) *" in text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"episodes": EpisodeCounts(wanted=9, completed=8, missing=1), "missing_places": ["2/1"]},
            "1 of 9 episodes are",
        ),
        ({"episodes": EpisodeCounts(wanted=9, completed=8, mixed=1)}, "1 episodes have tokens of another policy"),
        ({"episodes": EpisodeCounts(wanted=9, failed=1), "errors": {"EngineError: died": 1}}, "EngineError: died (x1)"),
        ({"episodes": EpisodeCounts(wanted=9, completed=9, unscored=2)}, "2 episodes ended without a reward"),
        ({"models": ["a", "b"]}, "workers had different models"),
    ],
)
def test_what_spoils_the_figures_is_said(fields: dict[str, Any], expected: str) -> None:
    report = EvaluationReport(evaluations=[evaluation(1.0, **fields)])
    assert expected in printed(report_tables(report))
    assert expected in printed(comparison_tables([("a.json", report), ("b.json", report)]))
