"""A judge that answers over HTTP as a model would, trajectories to be scored, and what became of them."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rollstream.schemas import ids
from rollstream.schemas.trajectories import Sample, Trajectory, TrajectoryError, Turn, VersionSpan
from rollstream.scorers.service import run_scorer
from rollstream.scorers.settings import ScorerSettings
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings

DEADLINE_S = 60.0
WORDS = [f"w{i}" for i in range(100)]

Answer = Callable[[str], Awaitable[web.Response]]


class StandInJudge:
    """Answers each question with what ``answer`` says; knows what was asked, and how many at once."""

    def __init__(self) -> None:
        self.url = ""
        self.answer: Answer = score_of(5)
        self.questions: list[str] = []
        self.keys: set[str | None] = set()
        self.running = 0
        self.most_running = 0
        self.asked = asyncio.Event()

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        question = body["messages"][-1]["content"] if "messages" in body else json.dumps(body)
        self.questions.append(question)
        self.keys.add(request.headers.get("Authorization"))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.asked.set()
        try:
            return await self.answer(question)
        finally:
            self.running -= 1


def completion(text: str, finish_reason: str = "stop") -> web.Response:
    return web.json_response({"choices": [{"message": {"content": text}, "finish_reason": finish_reason}]})


def score_of(score: float) -> Answer:
    async def answer(question: str) -> web.Response:
        return completion(f"It is fine.\nScore: {score}")

    return answer


@pytest_asyncio.fixture
async def judge() -> AsyncIterator[StandInJudge]:
    stand_in = StandInJudge()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", stand_in.handle)
    app.router.add_post("/classify", stand_in.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    stand_in.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield stand_in
    await runner.cleanup()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real tokenizer whose tokens are words: id 7 is "w7"."""
    folder = tmp_path_factory.mktemp("tokenizer")
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue] -- a property, declared read-only
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def trajectory(group_index: int, member_index: int, *, group_size: int = 2, **changes: Any) -> Trajectory:
    """Its response is "w1 w2 … w<member + 1>"."""
    is_failed = changes.get("status") == "failed"
    tokens = member_index + 1
    sample = Sample(
        prompt_ids=np.array([10 + group_index], dtype=np.int32),
        response_ids=np.arange(1, tokens + 1, dtype=np.int32),
        response_mask=np.ones(tokens, dtype=np.uint8),
        response_logprobs=np.full(tokens, -0.5, dtype=np.float32),
        version_spans=[VersionSpan(0, tokens, 0)],
        turns=[Turn(start=0, end=tokens, finish_reason="stop")],
    )
    fields: dict[str, Any] = {
        "run_id": "run",
        "trajectory_id": ids.trajectory_id("run", group_index, member_index),
        "group_id": ids.group_id("run", group_index),
        "group_index": group_index,
        "group_size": group_size,
        "member_index": member_index,
        "status": "completed",
        "stop_reason": "infrastructure" if is_failed else "stop",
        "samples": [] if is_failed else [sample],
        "reward": None if is_failed else 1.0,
        "error": TrajectoryError(type="EngineError", message="died") if is_failed else None,
    }
    return Trajectory(**fields | changes)


Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Scored = Callable[[int], Awaitable[list[Trajectory]]]
Running = Callable[..., AbstractAsyncContextManager[None]]


@pytest.fixture(scope="session")
def make() -> Callable[..., Trajectory]:
    return trajectory


@pytest.fixture(scope="session")
def say() -> Callable[..., web.Response]:
    """A chat completion with this text."""
    return completion


@pytest_asyncio.fixture
async def publisher(kafka: KafkaSettings) -> AsyncIterator[Publisher]:
    async with Publisher(kafka, profile="durable") as publisher:
        yield publisher


@pytest.fixture
def send(publisher: Publisher, kafka: KafkaSettings) -> Send:
    """Publish as rollout workers do."""

    async def send(trajectories: Iterable[Trajectory]) -> None:
        partitions = kafka.topics["trajectories"].partitions
        for each in trajectories:
            partition = ids.group_partition(each.group_id, partitions)
            await publisher.publish(each, key=each.group_id, partition=partition)

    return send


@pytest_asyncio.fixture
async def records(kafka: KafkaSettings) -> AsyncIterator[Callable[[str, int], Awaitable[list[Record]]]]:
    """The first so many records of a topic; waits for them."""

    async def read(short: str, count: int) -> list[Record]:
        consumer = await start_consumer(kafka, kafka.topic(short))
        found: list[Record] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                while len(found) < count:
                    batches = await consumer.getmany(timeout_ms=200)
                    found += [record for batch in batches.values() for record in batch]
        finally:
            await stop_consumer(consumer)
        return found

    yield read


@pytest.fixture
def scored(records: Callable[[str, int], Awaitable[list[Record]]]) -> Scored:
    """So many scored trajectories, by group and member."""

    async def read(count: int) -> list[Trajectory]:
        found = [decode_record(record, Trajectory) for record in await records("scored-trajectories", count)]
        return sorted(found, key=lambda each: (each.group_index, each.member_index))

    return read


@pytest.fixture
def running(kafka: KafkaSettings, judge: StandInJudge, tokenizer: Path) -> Running:
    """A scorer that runs beside the block and is drained at its end; by default it asks the judge once."""

    @asynccontextmanager
    async def running(*, judge_settings: dict[str, Any] | None = None, **options: Any) -> AsyncGenerator[None]:
        endpoint = {"url": f"{judge.url}/v1", "model": "j", "request_tries": 2, **(judge_settings or {})}
        given = {
            "tokenizer": tokenizer,
            "judges": {"default": endpoint},
            "scorers": {"judge": {"kind": "judge", "prompt": "{prompt}: {final_answer}"}},
            **options,
        }
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(run_scorer(ScorerSettings.model_validate(given), kafka, stop))
            try:
                yield
            finally:
                stop.set()

    return running
