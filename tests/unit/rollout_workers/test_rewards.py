from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.answer_matching import final_number, same_text, spoken_text
from rollstream.rollout_workers.regex_matching import MATCH_TIMEOUT_S, PatternError, last_match
from rollstream.rollout_workers.rewards import RewardInput, RewardResult, find_reward, score
from rollstream.schemas.errors import DataError, SettingsError, TransientError
from rollstream.schemas.tasks import RewardSpec


async def reward(name: str, text: str, answer: str | None, **arguments: Any) -> float:
    return (await score(RewardSpec(name=name, answer=answer, arguments=arguments), RewardInput(text))).reward


@pytest.mark.parametrize(
    "text",
    [
        *("18", "$18", "18.0", "18.", "+18", "#### 18", "The answer is 18.", "the answer is: **18** apples, not 40."),
        *("9 + 9 = 18", "16-3-4=9, 9*2 = $18", "\\boxed{18}", "<think>maybe 20</think>It is 18", "答案是18", "1.8e1"),
        *("#### 17\n#### 18 ", "18 dollars", "€18", "Answer: 18 out of 20", "So 36/2 comes to 18"),
    ],
)
async def test_numeric_recognises_the_right_number(text: str) -> None:
    assert await reward("numeric", text, "18") == 1.0


@pytest.mark.parametrize(
    "text",
    ["", "eighteen", "-18", "181", "18.5", "18 or 19", "x18", "#### 19 (18)", "<think>18", "<think>18</think>no"],
)
async def test_numeric_refuses_other_numbers(text: str) -> None:
    assert await reward("numeric", text, "18") == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("1,234", "1234"), ("$1,234,567.50", "1234567.50"), ("1,23", "23"), ("12,345", "12345"), ("1,2345", "2345")),
        *(("-5", "-5"), ("-$5", "-5"), ("$-5", "-5"), ("\N{MINUS SIGN}5", "-5"), ("10-5", "5"), ("= -5", "-5")),
        *((".5", "0.5"), ("50%", "50"), ("1e3", "1000"), ("2E-2", "0.02"), ("3 4", "4"), ("4th", "4")),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, number: str) -> None:
    assert final_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "9" * 500, "٣", "v", "$", "-", "e"])
def test_what_is_no_number_is_none(text: str) -> None:
    assert final_number(text) is None


@given(st.integers(-(10**300), 10**300))
def test_every_integer_is_read_back_with_and_without_separators(number: int) -> None:
    assert final_number(f"so #### {number}") == number
    assert final_number(f"so #### {number:,}") == number


@given(st.text())
def test_any_text_has_a_finite_number_or_none(text: str) -> None:
    number = final_number(text)
    assert number is None or number.is_finite()


async def test_numeric_compares_exactly_within_its_tolerance() -> None:
    assert await reward("numeric", "9007199254740993", "9007199254740992") == 0.0
    assert await reward("numeric", "0.3333333", "0.33333333") == 1.0
    assert await reward("numeric", "0.33", "0.3333") == 0.0
    assert await reward("numeric", "0.33", "0.3333", tolerance=0.01) == 1.0
    assert await reward("numeric", "1e999", "1") == 0.0


async def test_numeric_says_whether_there_was_an_answer() -> None:
    result = await score(RewardSpec(name="numeric", answer="18"), RewardInput("I do not know"))
    assert result.components == {"numeric": 0.0, "answered": 0.0}


async def test_exact_ignores_white_space_and_thinking_only() -> None:
    assert await reward("exact", "<think>hm</think>\n New  York\n", "New York") == 1.0
    assert await reward("exact", "new york", "New York") == 0.0
    assert await reward("exact", "NEW YORK", "New York", ignore_case=True) == 1.0
    assert await reward("exact", "In New York", "New York") == 0.0


async def test_regex_compares_its_group_in_the_last_match() -> None:
    pattern = r"(?:city|town)=(\w+)"
    assert await reward("regex", "city=Rome town=Oslo", "Oslo", pattern=pattern) == 1.0
    assert await reward("regex", "city=Oslo town=Rome", "Oslo", pattern=pattern) == 0.0
    assert await reward("regex", "CITY=OSLO", "Oslo", pattern=pattern, ignore_case=True) == 1.0
    assert await reward("regex", "a1b2", "b", pattern=r"(?P<letter>[a-z])(\d)", group="letter") == 1.0
    assert await reward("regex", "well ok", None, pattern="ok$") == 1.0
    assert await reward("regex", "well", None, pattern="ok$") == 0.0


async def test_regex_arguments_that_cannot_work_are_data_errors() -> None:
    for arguments in (
        {},
        {"pattern": "("},
        {"pattern": "a", "group": 3},
        {"pattern": "a", "group": "x"},
        {"pattern": 5},
    ):
        with pytest.raises(DataError, match="regex"):
            await reward("regex", "a", "a", **arguments)


def test_a_catastrophic_pattern_is_cut_off() -> None:
    started = time.monotonic()
    with pytest.raises(PatternError, match="simplify"):
        last_match(r"(a|a)+$", "a" * 64 + "b")
    assert time.monotonic() - started < 10 * MATCH_TIMEOUT_S


@pytest.mark.parametrize(
    ("name", "answer", "arguments"),
    [
        ("exact", None, {}),
        ("numeric", None, {}),
        ("numeric", "many", {}),
        ("numeric", "1", {"tolerance": -1}),
        ("numeric", "1", {"tolerance": math.nan}),
        ("numeric", "1", {"tolerance": True}),
        ("numeric", "1", {"tolerence": 1}),
        ("exact", "1", {"ignore_case": "yes"}),
        ("nonsense", "1", {}),
    ],
)
async def test_a_task_whose_reward_cannot_work_is_a_data_error(
    name: str, answer: str | None, arguments: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=name):
        await reward(name, "1", answer, **arguments)


def test_an_unknown_reward_is_refused_with_the_known_names() -> None:
    with pytest.raises(SettingsError, match=r"'accuracy'.*'exact', 'numeric', 'regex'.*module:function"):
        find_reward("accuracy")
    with pytest.raises(SettingsError, match="cannot be loaded"):
        find_reward("no_such_module:f")
    with pytest.raises(SettingsError, match="cannot be loaded"):
        find_reward("math:no_such_function")
    with pytest.raises(SettingsError, match="not a function"):
        find_reward("math:pi")


OWN_REWARDS = """
from rollstream.rollout_workers.rewards import RewardResult
from rollstream.schemas.errors import TransientError

def length(episode): return len(episode.turn_texts) + len(episode.tool_results)
async def parts(episode): return {"reward": 0.5, "style": episode.arguments["weight"]}
def result(episode): return RewardResult(1, {"good": episode.answer == "yes"})
def deferred(episode): return parts(episode)
def raises(episode): raise KeyError("column")
async def judge_is_down(episode): raise TransientError("judge is down")
async def gives_up(episode): raise TimeoutError("judge")
def nan(episode): return float("nan")
def infinite_part(episode): return {"reward": 1.0, "style": float("inf")}
def nothing(episode): return None
def text(episode): return "1"
def no_reward(episode): return {"style": 1.0}
def huge(episode): return 10 ** 400
"""


@pytest.fixture
def own_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_rewards_of_this_test.py").write_text(OWN_REWARDS)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    find_reward.cache_clear()
    sys.modules.pop("own_rewards_of_this_test", None)


@pytest.mark.usefixtures("own_rewards")
async def test_own_functions_may_be_sync_or_async_and_return_parts() -> None:
    async def run(function: str) -> RewardResult:
        spec = RewardSpec(name=f"own_rewards_of_this_test:{function}", answer="yes", arguments={"weight": 0.25})
        return await score(spec, RewardInput("yes", turn_texts=("a", "b"), tool_results=("c",)))

    assert await run("length") == RewardResult(3.0)
    assert await run("parts") == RewardResult(0.5, {"style": 0.25})
    assert await run("deferred") == RewardResult(0.5, {"style": 0.25})
    assert await run("result") == RewardResult(1.0, {"good": 1.0})


@pytest.mark.usefixtures("own_rewards")
@pytest.mark.parametrize(
    ("function", "seen"),
    [
        *(("raises", "KeyError.*column"), ("nan", "reward = nan"), ("infinite_part", "style = inf")),
        *(("nothing", "None"), ("text", "'1'"), ("no_reward", "without 'reward'"), ("huge", "finite")),
        ("gives_up", "TimeoutError"),
    ],
)
async def test_what_an_own_function_does_wrong_is_a_data_error(function: str, seen: str) -> None:
    with pytest.raises(DataError, match=seen):
        await reward(f"own_rewards_of_this_test:{function}", "1", "1")


@pytest.mark.usefixtures("own_rewards")
async def test_a_transient_error_of_a_reward_stays_transient() -> None:
    with pytest.raises(TransientError, match="judge is down"):
        await reward("own_rewards_of_this_test:judge_is_down", "1", "1")


async def test_cancelling_a_reward_is_not_an_error_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Event()

    async def waits(episode: RewardInput) -> float:
        started.set()
        await asyncio.Event().wait()
        return float(len(episode.final_text))

    module = ModuleType("waiting_reward_of_this_test")
    module.__dict__["waits"] = waits
    monkeypatch.setitem(sys.modules, module.__name__, module)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(reward(f"{module.__name__}:waits", "1", "1"))
        await started.wait()
        task.cancel()
    assert task.cancelled()


def test_spoken_text_is_what_follows_thinking() -> None:
    assert spoken_text("<think>a</think>b") == "b"
    assert spoken_text("a</think>b</think>c") == "c"
    assert spoken_text("b<think>a") == "b"
    assert same_text(" a\n b ", "a b")
