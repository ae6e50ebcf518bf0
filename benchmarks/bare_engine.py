"""ReAct episodes directly on an engine, in one process, with the calculator as a function call: the yardstick.

No Kafka, no tool worker, no journal, no trajectory: whatever a pipeline adds, it adds to this.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rollstream.rollout_workers.chat_format import ChatFormat, ParsedTurn
from rollstream.rollout_workers.engine import Engine
from rollstream.schemas.tasks import RolloutTask
from rollstream.tool_workers.builtin_tools.calculator import calculator
from rollstream.tool_workers.functions import ToolError


@dataclass(frozen=True)
class Throughput:
    """Sampled tokens of some episodes, and the seconds from the first start to the last end."""

    episodes: int
    tokens: int
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Sampled, by the clock on the wall."""
        return self.tokens / self.wall_s


@dataclass(frozen=True)
class PlannedEpisode:
    """A task, and what its request ids begin with: a scripted engine's timing is a function of them."""

    task: RolloutTask
    request_prefix: str


async def run_bare(
    engine: Engine, chat: ChatFormat, episodes: Iterable[PlannedEpisode], *, concurrency: int
) -> Throughput:
    """Run the episodes in order, ``concurrency`` at once."""
    waiting = iter(episodes)
    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        slots = [group.create_task(_slot(engine, chat, waiting)) for _ in range(concurrency)]
    wall_s = time.perf_counter() - begin
    tokens = [count for slot in slots for count in slot.result()]
    return Throughput(len(tokens), sum(tokens), wall_s)


async def _slot(engine: Engine, chat: ChatFormat, waiting: Iterator[PlannedEpisode]) -> list[int]:
    return [await _episode(engine, chat, planned) for planned in waiting]


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
