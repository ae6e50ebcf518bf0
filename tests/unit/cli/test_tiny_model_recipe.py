from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest

from rollstream.cli.tiny_model import ANSWER_PATTERN, CALCULATOR, ensure_tiny_model, make_tasks, model_cache
from rollstream.cli.tiny_model.arithmetic import OPERATIONS
from rollstream.cli.tiny_model.demonstrations import clean_demonstration, flawed_demonstration
from rollstream.rollout_workers.hermes import parse_hermes
from rollstream.schemas.errors import TransientError


def test_tasks_are_the_same_for_a_seed_and_extend_one_another() -> None:
    assert make_tasks(3, 20)[:5] == make_tasks(3, 5)
    assert make_tasks(4, 5) != make_tasks(3, 5)


def test_the_answer_is_the_value_of_the_expression_in_the_prompt() -> None:
    for task in make_tasks(0, 200):
        left, sign, right = task.expression.split()
        assert task.answer == str(OPERATIONS[sign](int(left), int(right)))
        assert task.expression in task.prompt


def test_a_clean_demonstration_calls_the_calculator_and_is_rewarded() -> None:
    for task in make_tasks(1, 100):
        shown = clean_demonstration(task)
        (call,) = parse_hermes(shown.turns[0]).calls
        assert (call.name, json.loads(call.arguments_json)) == (CALCULATOR.name, {"expression": task.expression})
        answer = re.search(ANSWER_PATTERN, shown.turns[-1])
        assert answer is not None
        assert answer[1] == task.answer


def test_flaws_come_in_the_shares_that_leave_room_for_reward() -> None:
    rng = random.Random(0)
    shown = [flawed_demonstration(rng) for _ in range(4000)]
    kinds = [parse_hermes(each.turns[0]).kind for each in shown]
    assert 0.32 < kinds.count("none") / 4000 < 0.38
    assert 0.08 < kinds.count("malformed") / 4000 < 0.12
    assert all(
        each.observations[0].startswith("Error:") == (kind == "malformed")
        for each, kind in zip(shown, kinds, strict=True)
        if kind != "none"
    )


def test_a_seed_has_a_folder_of_its_own() -> None:
    assert model_cache.recipe_digest(0) != model_cache.recipe_digest(1)
    assert model_cache.recipe_digest(0) == model_cache.recipe_digest(0)


def refuse(line: str) -> None:
    raise AssertionError(f"it is made again: {line}")


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    made = tmp_path / f"tiny-model-{model_cache.recipe_digest(5)}"
    made.mkdir()
    (made / "config.json").write_text("{}")
    assert ensure_tiny_model(tmp_path, seed=5, progress=refuse) == made


def test_the_cache_follows_the_users_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_cache.default_cache_dir() == tmp_path / "rollstream"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert model_cache.default_cache_dir() == Path.home() / ".cache" / "rollstream"


def test_a_training_that_fails_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TransientError, match="ended with code 1"):
        ensure_tiny_model(tmp_path)
    assert list(tmp_path.iterdir()) == []
