"""ReAct episodes directly on an engine, in one process, with the calculator as a function call: the yardstick.

No Kafka, no tool worker, no journal, no trajectory: whatever a pipeline adds, it adds to this.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rollstream.rollout_workers.chat_format import ChatFormat, ParsedTurn
from rollstream.rollout_workers.engine import Engine
from rollstream.schemas.tasks import RolloutTask
from rollstream.tool_workers.builtin_tools.calculator import calculator
from rollstream.tool_workers.functions import ToolError


@dataclass(frozen=True)
class EpisodeRun:
    """One episode that ran from ``started_at`` to ``finished_at`` (unix seconds)."""

    started_at: float
    finished_at: float
    tokens: int


@dataclass(frozen=True)
class Throughput:
    """Sampled tokens in a window of time."""

    tokens: int
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """By the clock on the wall."""
        return self.tokens / self.wall_s


def steady_throughput(runs: Sequence[EpisodeRun]) -> Throughput:
    """Of the time in which every slot is taken: from the first start to the last one. Counts what has ended in it."""
    begin, end = min(run.started_at for run in runs), max(run.started_at for run in runs)
    return Throughput(sum(run.tokens for run in runs if run.finished_at <= end), end - begin)


@dataclass(frozen=True)
class PlannedEpisode:
    """A task, and what its request ids begin with: a scripted engine's timing is a function of them."""

    task: RolloutTask
    request_prefix: str


async def run_bare(
    engine: Engine, chat: ChatFormat, episodes: Iterable[PlannedEpisode], *, concurrency: int
) -> list[EpisodeRun]:
    """Run the episodes in order, ``concurrency`` at once."""
    waiting = iter(episodes)
    async with asyncio.TaskGroup() as group:
        slots = [group.create_task(_slot(engine, chat, waiting)) for _ in range(concurrency)]
    return [run for slot in slots for run in slot.result()]


async def _slot(engine: Engine, chat: ChatFormat, waiting: Iterator[PlannedEpisode]) -> list[EpisodeRun]:
    runs: list[EpisodeRun] = []
    for planned in waiting:
        started_at = time.time()
        tokens = await _episode(engine, chat, planned)
        runs.append(EpisodeRun(started_at, time.time(), tokens))
    return runs


async def _episode(engine: Engine, chat: ChatFormat, planned: PlannedEpisode) -> int:
    """One episode under the limits of its task; returns how many tokens were sampled."""
    task, limits = planned.task, planned.task.limits
    ids = chat.render_prompt(task.messages, task.tools)
    room = min(limits.max_response_tokens, engine.max_model_len - len(ids))
    prompt_length, sampled, malformed = len(ids), 0, 0
    for turn in range(limits.max_turns):
        generation = await engine.generate(
            ids,
            task.sampling,
            f"{planned.request_prefix}-{2 * turn}",
            max_tokens=min(task.sampling.max_tokens, room - (len(ids) - prompt_length)),
            stop_token_ids=chat.stop_token_ids,
        )
        ids += generation.ids
        sampled += len(generation.ids)
        parsed = chat.parse_turn(chat.decode_turn(generation.ids))
        malformed += parsed.kind == "malformed"
        if parsed.kind == "none" or malformed > limits.max_malformed_turns:
            break
        ids += chat.render_tool_results(generation.ids, await _answers(parsed))
        if len(ids) - prompt_length >= room:
            break
    return sampled


async def _answers(parsed: ParsedTurn) -> list[str]:
    if parsed.kind == "malformed":
        return [f"Error: malformed tool call: {parsed.reason}"]
    return [await _answer(call.name, call.arguments_json) for call in parsed.calls]


async def _answer(name: str, arguments: str) -> str:
    if name != "calculator":
        return f"Error: unknown tool {name!r}; the tools are: calculator"
    try:
        return await calculator(**json.loads(arguments))
    except (ToolError, TypeError) as error:
        return f"Error: {error}"
