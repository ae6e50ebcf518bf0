"""Tool workers that die or freeze at every stage of a call: what ran is counted, and what is not known is said."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rollstream.schemas import ids
from rollstream.schemas.tools import ToolCall
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.transport.clients import admin_client
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient
from rollstream.transport.topic_admin import apply_topics

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(120)]

SESSION_TIMEOUT_S = 3.0
PARTITIONS = {"tasks": 1, "journal": 1, "tool-calls.default": 1, "tool-results": 2, "trajectories": 1}
MORTAL_TOOLS = '''
"""Tools that count what they do, in a worker that kills itself once, at the stage the file `stage` names."""
import asyncio, os, pathlib, signal
from rollstream.schemas.tools import ToolResult
from rollstream.tool_workers.call_intake import CallIntake
from rollstream.tool_workers.functions import tool
from rollstream.transport.publisher import Publisher

home = pathlib.Path(__file__).parent

def die_at(stage):
    file = home / "stage"
    if file.exists() and file.read_text() == stage:
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

class Claims:
    original = CallIntake.claim
    async def claim(self, *args, **options):
        die_at("before the claim")
        is_ours = await Claims.original(self, *args, **options)
        die_at("after the claim")
        return is_ours
CallIntake.claim = Claims.claim

class Answers:
    original = Publisher.publish
    async def publish(self, message, **options):
        is_answer = isinstance(message, ToolResult)
        if is_answer:
            die_at("before the answer")
        place = await Answers.original(self, message, **options)
        if is_answer:
            die_at("after the answer")
        return place
Publisher.publish = Answers.publish

def effect(name):
    with open(home / "effects", "a") as file:
        file.write(f"{name} by {os.getpid()}\\n")

@tool(is_idempotent=False)
def charge(name: str) -> str:
    """Charge somebody."""
    effect(name)
    die_at("during the run")
    return "charged"

@tool
def look(name: str) -> str:
    """Look something up."""
    effect(name)
    die_at("during the run")
    return "seen"

@tool
async def wait(name: str) -> str:
    """Wait until told."""
    effect(name)
    while not (home / "go on").exists():
        await asyncio.sleep(0.02)
    return "waited"
'''


@pytest.fixture
async def kafka(broker: str) -> AsyncGenerator[KafkaSettings]:
    """One partition of calls, and members that are soon taken for dead."""
    settings = KafkaSettings(
        bootstrap=broker,
        prefix=f"killed-{uuid.uuid4().hex[:12]}.",
        partitions=PARTITIONS,
        session_timeout_s=SESSION_TIMEOUT_S,
    )
    await apply_topics(settings)
    yield settings
    async with admin_client(settings) as admin:
        await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(settings.prefix)])


class Home:
    """The folder in which workers and test meet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools = folder / "mortal_tools.py"
        self.tools.write_text(MORTAL_TOOLS)

    def die(self, stage: str) -> None:
        (self.folder / "stage").write_text(stage)

    def go_on(self) -> None:
        (self.folder / "go on").touch()

    @property
    def effects(self) -> list[str]:
        """What was done, in order: "name by process"."""
        file = self.folder / "effects"
        return file.read_text().splitlines() if file.exists() else []

    def times(self, name: str) -> int:
        return sum(effect.startswith(f"{name} by ") for effect in self.effects)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@asynccontextmanager
async def process(
    kafka: KafkaSettings, home: Home, tools: str | None = None
) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A tool worker that may be killed."""
    config = home.folder / "rollstream.toml"
    partitions = "\n".join(f"{json.dumps(topic)} = {count}" for topic, count in kafka.partitions.items())
    config.write_text(
        f"""
[kafka]
bootstrap = "{kafka.bootstrap}"
prefix = "{kafka.prefix}"
session_timeout_s = {kafka.session_timeout_s}
[kafka.partitions]
{partitions}
[tool_worker]
isolation = "unsafe-local"
tools = {json.dumps((tools or str(home.tools)).split(","))}
"""
    )
    with (home.folder / "worker.log").open("ab") as log:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rollstream.cli.main", "--config", str(config), "tool-worker", stdout=log, stderr=log
        )  # fmt: skip
    try:
        yield worker
    finally:
        if worker.returncode is None:
            worker.send_signal(signal.SIGCONT)
            worker.kill()
            await worker.wait()


@asynccontextmanager
async def inside(kafka: KafkaSettings, home: Home, tools: str | None = None) -> AsyncGenerator[None]:
    """A tool worker of this process; it drains at the end."""
    stop = asyncio.Event()
    settings = ToolWorkerSettings(
        tools=tuple((tools or str(home.tools)).split(",")),
        worker_id=f"tools-{uuid.uuid4().hex[:8]}",
        isolation="unsafe-local",
        drain_s=1,
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(run_tool_worker(settings, kafka, stop))
        try:
            yield
        finally:
            stop.set()


def call(tool: str, arguments: dict[str, Any], **fields: Any) -> ToolCall:
    defaults: dict[str, Any] = {
        "call_id": uuid.uuid4().hex,
        "session_id": None,
        "turn": 0,
        "token": None,
        "deadline": time.time() + 40,
        "timeout_s": 30.0,
        "reply_topic": "",
        "reply_partition": 0,
    }
    return ToolCall(tool=tool, arguments=json.dumps(arguments), **(defaults | fields))


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(40):
        while not condition():  # noqa: ASYNC110 -- another process brings it about
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("tool", "stage", "status", "times"),
    [
        ("charge", "before the claim", "ok", 1),
        ("charge", "after the claim", "outcome_unknown", 0),
        ("charge", "during the run", "outcome_unknown", 1),
        ("charge", "before the answer", "outcome_unknown", 1),
        ("charge", "after the answer", "ok", 1),
        ("look", "during the run", "ok", 2),
        ("look", "before the answer", "ok", 2),
        ("look", "after the answer", "ok", 1),
    ],
)
async def test_a_harmful_call_runs_once_at_most_and_another_one_until_it_is_answered(
    kafka: KafkaSettings, home: Home, tool: str, stage: str, status: str, times: int
) -> None:
    home.die(stage)
    async with (
        ToolClient(kafka, worker_id="a", resend_after_s=0.5) as client,
        process(kafka, home) as mortal,
        asyncio.TaskGroup() as group,
    ):
        answer = group.create_task(client.call(call(tool, {"name": "it"}), "default"))
        assert await mortal.wait() == -signal.SIGKILL
        async with inside(kafka, home):
            assert (await answer).status == status
    assert home.times("it") == times


async def test_a_frozen_worker_that_wakes_runs_no_harmful_call_that_another_has_run(
    kafka: KafkaSettings, home: Home
) -> None:
    async with (
        ToolClient(kafka, worker_id="a", resend_after_s=0.5) as client,
        asyncio.TaskGroup() as group,
        process(kafka, home) as frozen,
    ):
        group.create_task(client.call(call("wait", {"name": "before"}), "default"))
        await until(lambda: home.times("before") == 1)
        charge = group.create_task(client.call(call("charge", {"name": "it"}), "default"))
        await until(lambda: client.stats.resent >= 3)  # the first copy has arrived and waits for its claim
        frozen.send_signal(signal.SIGSTOP)
        async with inside(kafka, home):
            await until(lambda: home.times("before") == 2)
            home.go_on()
            assert (await charge).status == "ok"
        # Nobody else is left: the woken one keeps its partition, with the old records still in hand.
        frozen.send_signal(signal.SIGCONT)
        assert (await client.call(call("charge", {"name": "another"}), "default")).status == "ok"
        frozen.terminate()
        await frozen.wait()  # whatever it had in hand has been decided
    assert home.times("it") == 1
    assert home.effects[-1] == f"another by {frozen.pid}"


async def test_a_session_is_never_continued_from_another_past(kafka: KafkaSettings, home: Home) -> None:
    """A frozen worker holds the session; the same calls, sent again, open another one elsewhere."""
    async with ToolClient(kafka, worker_id="a", resend_after_s=0.5) as client:
        first = call("bash", {"command": "echo $$ >> ran; cat ran"}, session_id="s")
        async with process(kafka, home, "bash") as frozen:
            answer = await client.call(first, "default")
            assert (answer.status, answer.incarnation is not None) == ("ok", True)
            frozen.send_signal(signal.SIGSTOP)
            async with inside(kafka, home, "bash"):
                again = await client.call(first, "default")  # asked by another owner of the task
                assert (again.status, again.content.count("\n")) == ("ok", answer.content.count("\n"))
                assert again.incarnation != answer.incarnation
                for known in (answer, again):
                    token = ids.session_token(known.incarnation or "", [first.call_id])
                    after = call("bash", {"command": "cat ran"}, session_id="s", turn=1, token=token)
                    expected = "ok" if known is again else "session_lost"
                    assert (await client.call(after, "default")).status == expected
                frozen.send_signal(signal.SIGCONT)
            token = ids.session_token(answer.incarnation or "", [first.call_id])
            back = await client.call(
                call("bash", {"command": "cat ran"}, session_id="s", turn=1, token=token), "default"
            )
            assert (back.status, back.content, back.incarnation) == ("ok", answer.content, answer.incarnation)


async def test_two_copies_of_a_call_in_the_log_run_once_in_a_session(kafka: KafkaSettings, home: Home) -> None:
    async with (
        ToolClient(kafka, worker_id="a") as one,
        ToolClient(kafka, worker_id="d") as other,
        inside(kafka, home, "bash"),
    ):
        assert one.reply_partition != other.reply_partition
        each = call("bash", {"command": "sleep 0.3; echo x >> ran; cat ran"}, session_id="s")
        answers = await asyncio.gather(*(client.call(each, "default") for client in (one, other, one)))
        assert {(answer.status, answer.content) for answer in answers} == {("ok", "x\n")}
        assert (await other.call(each, "default")).content == "x\n"
