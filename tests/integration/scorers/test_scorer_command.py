"""`rollstream scorer` as a user calls it, with the example of the page."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker]

EXAMPLES = Path(__file__).parents[3] / "examples"


async def started(*arguments: str) -> asyncio.subprocess.Process:
    """The command in the folder of the examples."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rollstream.cli.main", "scorer", *arguments,
        cwd=EXAMPLES, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def output(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_the_example_judges_what_is_produced_until_it_is_told_to_stop(
    kafka: KafkaSettings,
    make: Callable[..., Trajectory],
    send: Callable[[list[Trajectory]], Awaitable[None]],
    scored: Callable[[int], Awaitable[list[Trajectory]]],
    judge: Any,
    say: Callable[..., web.Response],
    tokenizer: Path,
) -> None:
    async def half(question: str) -> web.Response:
        return say("It names the steps. Score: 5")

    judge.answer = half
    await send([make(0, 0), make(0, 1)])
    process = await started(
        "--scorer", "llm_judge:explains", "--tokenizer", str(tokenizer),
        "--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix,
        "--set", f"scorer.judges.default.url={judge.url}/v1", "--set", "scorer.judges.default.model=j",
        "--set", "scorer.combine=add",
    )  # fmt: skip
    try:
        done = await scored(2)
    finally:
        process.send_signal(signal.SIGTERM)
        code, _, said = await output(process)

    assert code == 0, said
    assert [each.reward for each in done] == [1.5, 1.5]
    assert done[1].rewards == {"outcome": 1.0, "explains": 0.5}
    assert done[1].extra["scorers"]["explains"]["judge_said"].endswith("Score: 5")
    assert any("<answer>\nw1 w2\n</answer>" in question for question in judge.questions)


async def test_a_check_says_what_scores_and_reaches_for_nothing() -> None:
    code, out, said = await output(await started("--check", "--scorer", "llm_judge:shortest_right"))
    assert code == 0, said
    assert "scorer shortest_right: FunctionScorer of whole groups" in out
    assert "reward = 1 * shortest_right" in out

    code, _, said = await output(await started("--check"))
    assert code == 1
    assert "nothing scores" in said
