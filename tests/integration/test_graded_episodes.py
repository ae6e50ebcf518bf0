"""Graded episodes in separate processes: broker, producer, rollout worker, tool worker, and a trainer's stream.

What the model says is determined: the prompt of a task is the list of the calls it makes, and a script reads them off.
What every task expects in private is `CANARY`, which no program of an agent may ever see.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from rollstream.schemas.codec import encode
from rollstream.schemas.tools import GRADE_TOOL, SessionEnd, ToolCall, ToolResult
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import TrajectoryStream
from rollstream.transport.clients import admin_client, start_consumer
from rollstream.transport.records import Record, decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import apply_topics

pytestmark = [pytest.mark.broker, pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = """
import json
from rollstream.rollout_workers.scripts import conversation

def say(prompt):
    messages = conversation(prompt.ids)
    calls = json.loads(next(content for role, content in messages if role == "user"))
    return f"<tool_call>{json.dumps(calls[sum(role == 'tool' for role, _ in messages)])}</tool_call>"
"""
MORTAL = """
import os, pathlib, signal
from rollstream.tool_workers.functions import tool
from rollstream.tool_workers.grading import grade_tool

stage, run_grader = pathlib.Path(__file__).parent / "stage", grade_tool.run_grader

def die_at(name):
    if stage.exists() and stage.read_text() == name:
        stage.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

async def mortal(*arguments):
    die_at("before the verdict")
    verdict = await run_grader(*arguments)
    die_at("after the verdict")
    return verdict

grade_tool.run_grader = mortal

@tool
def nothing() -> str:
    "Do nothing."
    return ""
"""
WORDS = ["private", "canary", "8675309"]
CANARY = "-".join(WORDS)
CASES = [
    {"call": "solution:joined", "args": [["a", "b"]], "expected": "a-b"},
    {"call": "solution:joined", "args": [WORDS], "expected": CANARY},
]
TEST = f"""
import unittest, solution
class Joining(unittest.TestCase):
    def test_letters(self): self.assertEqual(solution.joined(["a", "b"]), "a-b")
    def test_words(self): self.assertEqual(solution.joined({WORDS}), "{CANARY}")
"""
PRIVATE: dict[str, dict[str, Any]] = {
    "call_cases": {"artefacts": ["**/*"], "cases": CASES},
    "unit_tests": {"artefacts": ["**/*"], "tests": {"test_joined.py": TEST}, "modules": ["solution"]},
}
"""Arguments of the rewards."""
TOOLS = "bash,python,str_replace_editor,finish"
# Looks for what begins like the canary, with a pattern that does not find itself.
LOOK = (
    "{ env; cat /proc/*/environ /proc/*/cmdline; grep -raEoh 'private-canary-[a-z0-9]+' / --exclude-dir=proc "
    "--exclude-dir=sys --exclude-dir=usr; } 2>/dev/null | grep -aEo 'private-canary-[a-z0-9]+' | sort -u"
)
RIGHT = "def joined(words):\n    return '-'.join(words)\n"
WRONG = "def joined(words):\n    return '+'.join(words)\n"
EQUAL = "class Yes(str):\n    def __eq__(self, other): return True\ndef joined(words): return Yes('x')\n"
SPY = (
    f"import os\nfound = os.popen({LOOK!r}).read().split()\n"
    "others = [each for each in found if each != 'private-canary-file']\n"
    "def joined(words): return 'a-b' if found and words == ['a', 'b'] else ''.join(others)\n"
)
UNSHARE = "import ctypes\nctypes.CDLL(None).unshare(1 << 28)"
PLANT = (
    "for name in conftest sitecustomize usercustomize; do echo 'import os; os._exit(0)' > $name.py; done; "
    "echo 'def test_words(): pass' > test_joined.py; echo '[pytest]' > pytest.ini"
)


def call(name: str, **arguments: str) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def write(path: str, text: str) -> dict[str, Any]:
    return call("str_replace_editor", command="create", path=path, file_text=text)


FINISH = call("finish", answer="Done.")
SAID = call("finish", answer=f"```python\n{RIGHT}```")
LEFT = write("left.txt", "private-canary-file\n")
LOOKS = call("bash", command=f"export DECOY=private-canary-$((40+2)); {LOOK}")
BREAKS_OUT = [
    call("bash", command="unshare -Ur true"),
    call("python", code=UNSHARE),
    call("python", code="import socket\nsocket.socket().close()"),
]
DELETES = call("bash", command="find / -name 'test_*' -delete 2>/dev/null")
CALLS: dict[str, list[dict[str, Any]]] = {
    "right": [write("solution.py", RIGHT), call("bash", command="python3 -c 'import solution'"), FINISH],
    "looks": [LEFT, LOOKS, write("solution.py", RIGHT), FINISH],
    "breaks out": [*BREAKS_OUT, write("solution.py", RIGHT), FINISH],
    "wrong": [call("bash", command=f"cat > solution.py <<'END'\n{WRONG}END"), FINISH],
    "equals everything": [write("solution.py", EQUAL), FINISH],
    "plants files": [call("bash", command=PLANT), write("solution.py", WRONG), FINISH],
    "closes its workspace": [write("solution.py", WRONG), call("bash", command="chmod 0 /workspace"), FINISH],
    "deletes the tests": [DELETES, write("solution.py", "import sys\nsys.exit(0)\n"), FINISH],
    "spy": [LEFT, write("solution.py", SPY), FINISH],
}
"""What the agent of each task does."""


class Roles:
    """Processes of the command line on topics of their own."""

    def __init__(self, kafka: KafkaSettings, folder: Path) -> None:
        self.kafka = kafka
        self.folder = folder
        (folder / "determined.py").write_text(SCRIPT)
        (folder / "mortal.py").write_text(MORTAL)
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ROLLSTREAM_")}
        self._environment |= {
            "PYTHONPATH": str(folder),
            "ROLLSTREAM_KAFKA__BOOTSTRAP": kafka.bootstrap,
            "ROLLSTREAM_KAFKA__PREFIX": kafka.prefix,
            "ROLLSTREAM_KAFKA__PARTITIONS": json.dumps(dict(kafka.partitions)),
            "ROLLSTREAM_KAFKA__SESSION_TIMEOUT_S": str(kafka.session_timeout_s),
            "ROLLSTREAM_ROLLOUT_WORKER__ENGINE": json.dumps({"kind": "scripted", "script": "determined:say"}),
            "ROLLSTREAM_TOOL_WORKER__TOOLS": json.dumps([*TOOLS.split(","), str(folder / "mortal.py")]),
        }

    @contextmanager
    def running(self, *command: str, name: str = "") -> Generator[subprocess.Popen[bytes]]:
        """A role for as long as the block runs. One that still lives then has to leave cleanly."""
        log = self.folder / f"{name or command[0]}.log"
        with log.open("wb") as output:
            arguments = [sys.executable, "-m", "rollstream.cli.main", *command]
            process = subprocess.Popen(arguments, env=self._environment, stdout=output, stderr=output)
        try:
            yield process
            if process.poll() is None:
                process.terminate()
                assert process.wait(60) == 0, log.read_text()[-3000:]
        finally:
            process.kill()
            process.wait()

    def produce(self, reward: str, rows: list[dict[str, Any]]) -> None:
        """Emit rows of calls and private arguments; the run is named like the reward."""
        prompts = self.folder / f"{reward}.jsonl"
        prompts.write_text("\n".join(json.dumps(row | {"question": json.dumps(row["question"])}) for row in rows))
        limits = ("--group-size", "1", "--max-tokens", "4000", "--max-response-tokens", "20000", "--no-pace")
        graded = ("--reward", reward, "--reward-arguments-column", "private")
        with self.running("produce", str(prompts), "--run", reward, "--tools", TOOLS, *graded, *limits) as producer:
            assert producer.wait(60) == 0

    def trained(self, groups: int) -> list[Trajectory]:
        """What a trainer gets in one batch."""
        options: dict[str, Any] = {"groups_per_batch": groups, "min_members": 1, "max_batches": 1, "timeout_s": 90}
        with TrajectoryStream(self.kafka, **options) as stream:
            return [trajectory for batch in stream for trajectory in batch.trajectories()]

    async def records(self, topic: str) -> list[Record]:
        """All that are in a topic."""
        partition = TopicPartition(self.kafka.topic(topic), 0)
        consumer = await start_consumer(self.kafka)
        try:
            consumer.assign([partition])
            end = (await consumer.end_offsets([partition]))[partition]
            await consumer.seek_to_beginning()
            found: list[Record] = []
            async with asyncio.timeout(30):
                while await consumer.position(partition) < end:
                    found += (await consumer.getmany(timeout_ms=200)).get(partition, [])
            return found
        finally:
            await consumer.stop()


@contextmanager
def own_topics(bootstrap: str, folder: Path, session_timeout_s: float) -> Generator[Roles]:
    prefix = f"graded-{uuid.uuid4().hex[:12]}."
    partitions = {"tasks": 1, "journal": 1, "tool-calls.default": 1, "tool-results": 1, "trajectories": 1}
    kafka = KafkaSettings(
        bootstrap=bootstrap, prefix=prefix, partitions=partitions, session_timeout_s=session_timeout_s
    )

    async def delete() -> None:
        async with admin_client(kafka) as admin:
            await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(prefix)])

    asyncio.run(apply_topics(kafka))
    yield Roles(kafka, folder)
    asyncio.run(delete())


@dataclass(frozen=True)
class Graded:
    """What is left of all episodes: trajectories by reward and task, and what tools were asked and answered."""

    trajectories: dict[tuple[str, str], Trajectory]
    calls: list[ToolCall]
    results: list[ToolResult]


@pytest.fixture(scope="module")
def graded(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Graded:
    with own_topics(broker, tmp_path_factory.mktemp("graded"), session_timeout_s=10) as roles:
        with roles.running("tool-worker"), roles.running("rollout-worker"):
            for reward, private in PRIVATE.items():
                roles.produce(reward, [{"question": calls, "private": private} for calls in CALLS.values()])
            trained = roles.trained(len(PRIVATE) * len(CALLS))
        asked = [decode_record(r, ToolCall, SessionEnd) for r in asyncio.run(roles.records("tool-calls.default"))]
        answered = [decode_record(r, ToolResult) for r in asyncio.run(roles.records("tool-results"))]
    trajectories = {(each.run_id, list(CALLS)[each.group_index]): each for each in trained}
    return Graded(trajectories, [each for each in asked if isinstance(each, ToolCall)], answered)


def said(trajectory: Trajectory) -> str:
    """Every token as text."""
    ids = [id_ for sample in trajectory.samples for id_ in (*sample.prompt_ids, *sample.response_ids)]
    return bytes(id_ for id_ in ids if id_ < 256).decode()


@pytest.mark.parametrize("reward", PRIVATE)
@pytest.mark.parametrize("name", CALLS)
def test_an_episode_reaches_the_trainer_with_what_its_code_is_worth(name: str, reward: str, graded: Graded) -> None:
    trajectory = graded.trajectories[reward, name]
    assert (trajectory.status, trajectory.stop_reason, trajectory.attempt) == ("completed", "stop", 1)
    parts = trajectory.rewards
    if name in ("right", "looks", "breaks out"):
        assert (trajectory.reward, parts) == (1.0, {"passed": 2.0, "total": 2.0, "pass_rate": 1.0})
    elif name == "spy":  # it finds the file beside it, which is worth one of two, and not what is expected of it
        assert (trajectory.reward, parts) == (0.0, {"passed": 1.0, "total": 2.0, "pass_rate": 0.5})
    else:
        assert (trajectory.reward, parts["passed"], parts["pass_rate"], parts["total"] > 0) == (0.0, 0.0, 0.0, True)


def test_what_is_expected_is_in_the_grading_calls_and_nowhere_else(graded: Graded) -> None:
    gradings = {call.call_id: call for call in graded.calls if call.tool == GRADE_TOOL}
    others = {call.call_id: call for call in graded.calls if call.tool != GRADE_TOOL}
    answers = {result.call_id: result for result in graded.results if result.call_id not in gradings}
    assert len(gradings) == len(PRIVATE) * len(CALLS)
    assert len(others) == len(PRIVATE) * sum(map(len, CALLS.values()))
    assert all(CANARY in call.arguments for call in gradings.values())
    assert others.keys() == answers.keys()
    assert not [each for each in (*others.values(), *answers.values()) if CANARY in repr(each)]
    for (_, name), trajectory in graded.trajectories.items():
        # The agent that looks for it in all files, environments and command lines finds what is its own.
        assert ("private-canary-42\nprivate-canary-file\n" in said(trajectory)) == (name == "looks")
        assert CANARY not in said(trajectory)
        assert CANARY.encode() not in encode(trajectory, compress_above_bytes=1 << 30).value


@pytest.mark.parametrize("reward", PRIVATE)
def test_refused_attempts_are_told_to_the_trainer_and_honest_work_has_none(reward: str, graded: Graded) -> None:
    words = ("tool_denied", "tool_network", "tool_killed")
    signals = {
        name: {key: value for key, value in graded.trajectories[reward, name].metrics.items() if key.startswith(words)}
        for name in ("breaks out", "right")
    }
    tried = {"tool_denied": 2.0, "tool_denied_unshare": 2.0, "tool_network_attempts": 1.0}
    assert signals == {"breaks out": tried, "right": {}}


@pytest.mark.parametrize(
    ("stage", "calls", "grades", "attempt"),
    [
        ("before the verdict", CALLS["right"], {"artefacts": ["solution.py"]}, 2),  # the files died with the worker
        ("after the verdict", CALLS["right"], {"artefacts": ["solution.py"]}, 2),
        ("after the verdict", [SAID], {"from_text": "solution.py"}, 1),  # nothing was lost: graded again elsewhere
    ],
)
def test_a_tool_worker_killed_while_it_grades_changes_no_reward(
    stage: str, calls: list[dict[str, Any]], grades: dict[str, Any], attempt: int, broker: str, tmp_path: Path
) -> None:
    (tmp_path / "stage").write_text(stage)
    with own_topics(broker, tmp_path, session_timeout_s=3) as roles:
        with roles.running("rollout-worker"):
            with roles.running("tool-worker", name="mortal") as mortal:
                roles.produce("call_cases", [{"question": calls, "private": grades | {"cases": CASES}}])
                assert mortal.wait(60) == -signal.SIGKILL
            with roles.running("tool-worker", name="heir"):
                (trajectory,) = roles.trained(1)
        (record,) = asyncio.run(roles.records("trajectories"))
    assert decode_record(record, Trajectory).trajectory_id == trajectory.trajectory_id
    assert (trajectory.status, trajectory.reward, trajectory.rewards["passed"]) == ("completed", 1.0, 2.0)
    assert (trajectory.attempt, trajectory.infra_failures) == (attempt, attempt - 1)
