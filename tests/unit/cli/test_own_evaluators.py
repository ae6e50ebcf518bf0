"""What an own evaluator may return, and what becomes of one that does not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rollstream.cli.evaluation.flow import evaluate
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation import Evaluation
from rollstream.trainers.evaluation.report import PolicyFacts
from rollstream.transport.settings import KafkaSettings

NO_BROKER = KafkaSettings(bootstrap="localhost:9")
BASE = PolicyFacts(asked_for="base", lineage=0, version=0)
MODULE = """
import asyncio

def plain(context):
    return {"samples": context.settings.samples, "per_prompt": [0.0, 1.0, 1.0, 0.0]}

class Evaluator:
    async def __call__(self, context):
        return {"lineage": context.policy.lineage}

evaluator = Evaluator()

async def waits_for_ever(context):
    await asyncio.Event().wait()

async def times_out_itself(context):
    async with asyncio.timeout(0):
        await asyncio.Event().wait()

def text(context):
    return {"grade": "A"}

def nothing(context):
    return {"grades": []}

def infinite(context):
    return {"loss": float("inf")}

async def rolls_out_nothing(context):
    await context.rollout([])

async def bad_label(context):
    await context.rollout([{"question": "?"}], label="a/b")

async def bad_option(context):
    await context.rollout([{"question": "?"}], colour="red")

constant = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "returning_evaluators.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))  # pyright: ignore[reportUnknownMemberType]  -- pytest does not say its type


async def run(name: str, **values: Any) -> Evaluation:
    settings = EvaluationSettings(name="mine", evaluator=f"returning_evaluators:{name}", **values).checked()
    return await evaluate(settings, BASE, NO_BROKER, stop=asyncio.Event(), on_progress=print)


async def test_a_number_is_a_metric_and_a_list_has_an_error() -> None:
    metrics = (await run("plain", samples=3)).metrics
    assert (metrics["samples"].mean, metrics["samples"].std_error) == (3.0, 0.0)
    assert (metrics["per_prompt"].mean, metrics["per_prompt"].prompts) == (0.5, 4)
    assert metrics["per_prompt"].std_error > 0


async def test_an_object_that_can_be_called_will_do() -> None:
    assert (await run("evaluator")).metrics["lineage"].mean == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text", "metric 'grade' of evaluator 'returning_evaluators:text' is 'A'"),
        ("nothing", "metric 'grades'"),
        ("infinite", "metric 'loss'"),
        ("absent", "does it define 'absent'"),
        ("constant", "is a int, expected a function"),
        ("rolls_out_nothing", "at least one row"),
        ("bad_label", "the label 'a/b'"),
        ("bad_option", "colour"),
    ],
)
async def test_what_it_does_wrong_is_named(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        await run(name)


async def test_one_that_never_returns_ends_with_the_time_out_and_its_own_time_outs_are_its_own() -> None:
    with pytest.raises(SettingsError, match="did not return within"):
        await run("waits_for_ever", timeout_s=0.01)
    with pytest.raises(TimeoutError):
        await run("times_out_itself")
