from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.cli.evaluation.suites import load_suite
from rollstream.schemas.errors import SettingsError

SCORED: dict[str, Any] = {"reward": "numeric"}


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}) + "\n")
    return str(path)


def suite(tmp_path: Path, text: str) -> str:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return str(path)


def test_tasks_are_evaluation_tasks_with_as_many_members_as_samples(data: str) -> None:
    settings = EvaluationSettings(name="tiny", data=data, samples=4, tasks={**SCORED, "sampling": {"temperature": 0.5}})
    producer = settings.producer(data, run_id="run")
    assert (producer.is_train, producer.group_size, producer.pacing) == (False, 4, "free")
    assert producer.sampling.temperature == 0.5
    assert settings.pass_ks == (1, 2, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 2, "ks": [4]}, "pass@4 needs at least as many samples"),
        ({"ks": [0]}, "at least 1"),
        ({"name": "a b"}, "letters, digits"),
        ({"tasks": {"group_size": 4}}, "tasks.group_size is decided by the evaluation"),
        ({"data": "x.jsonl", "tasks": {"colour": "red"}}, "colour"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_what_is_wrong_fails_when_settings_are_made(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluationSettings.model_validate(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs a name"),
        ({"name": "tiny"}, "has no data"),
        ({"name": "tiny", "data": "x.jsonl"}, "nothing would score"),
    ],
)
def test_an_evaluation_that_cannot_be_run_says_what_it_lacks(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        EvaluationSettings.model_validate(values).checked()


def test_options_win_over_entries_of_a_suite_and_those_over_the_settings_of_the_process(
    tmp_path: Path, data: str
) -> None:
    source = suite(
        tmp_path,
        f"""
[[evaluation]]
name = "a"
data = {data!r}
samples = 4
tasks = {{ reward = "exact", skip = 0 }}
[[evaluation]]
name = "b"
data = {data!r}
""",
    )
    process = EvaluationSettings(samples=2, timeout_s=5, tasks={"reward": "numeric", "limit": 1})
    first, second = load_suite(source, process, {"policy": "base", "samples": None, "tasks": {"split": "test"}})
    assert (first.name, first.samples, first.policy, first.timeout_s) == ("a", 4, "base", 5)
    assert first.tasks == {"reward": "exact", "skip": 0, "limit": 1, "split": "test"}
    assert (second.name, second.samples, second.tasks["reward"]) == ("b", 2, "numeric")
    assert load_suite(source, process, {"samples": 16})[0].samples == 16


def test_a_suite_may_be_a_list_in_a_module(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evaluations_of_mine.py").write_text(
        "from rollstream.cli.evaluation.settings import EvaluationSettings\n"
        f"ALL = [dict(name='a', data={data!r}, tasks=dict(reward='exact')),\n"
        f"       EvaluationSettings(name='b', data={data!r}, tasks=dict(reward='exact'))]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))  # pyright: ignore[reportUnknownMemberType]  -- pytest does not say its type
    found = load_suite("evaluations_of_mine:ALL", EvaluationSettings(), {})
    assert [evaluation.name for evaluation in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[evaluation", "not valid TOML"),
        ("[other]\n", "holds no evaluations"),
        ("evaluation = 3\n", "holds no evaluations"),
        ("evaluation = [3]\n", "expected tables"),
        ("[[evaluation]]\nname = 'a'\ncolour = 'red'\n", "colour"),
        ("[[evaluation]]\nname = 'a'\n", "has no data"),
        ("[[evaluation]]\nname = 'a'\nevaluator = 'm:f'\n[[evaluation]]\nname = 'a'\nevaluator = 'm:f'\n", "twice"),
    ],
)
def test_a_wrong_suite_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        load_suite(suite(tmp_path, text), EvaluationSettings(), {})
    if message != "has no data":
        assert "suite.toml" in str(refused.value)


@pytest.mark.parametrize("source", ["absent.toml", "absent_module:ALL", "json:absent", "json"])
def test_a_suite_that_is_not_there_is_an_error_of_settings(source: str) -> None:
    with pytest.raises(SettingsError, match=source.partition(":")[0]):
        load_suite(source, EvaluationSettings(), {})


def test_the_suite_of_the_page_can_be_loaded(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```\n(\[\[evaluation\]\].*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = load_suite(suite(tmp_path, example), EvaluationSettings(), {})
    assert [evaluation.name for evaluation in found] == ["gsm8k", "words"]
