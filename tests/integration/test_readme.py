"""The README, read from top to bottom by somebody who does what it says: every command runs, every block of code too.

Substituted is what a reader has to bring along: the data, the model (here the scripted engine), the address, a
trainer's own functions. `make` is asked what it would do; what it does then is the rest of the suite.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (pyarrow is not annotated)

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from rollstream.cli.record_stream import read_records
from rollstream.cli.task_ledger import TaskLedger
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.messages import Message
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers import PaddedBatch
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.sandbox, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUESTIONS, GROUP_SIZE = 16, 8
MODEL = "/models/Qwen3-8B"
COMMAND_DEADLINE_S = 60


def steps() -> list[tuple[str, str]]:
    """(language, text) in the order of the page: each console command by itself, each block of Python whole."""
    found: list[tuple[str, str]] = []
    for language, text in re.findall(r"^```(console|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        commands = re.findall(r"^\$ (.+)$", text.replace("\\\n", " "), re.MULTILINE)
        found += [(language, command) for command in commands] if language == "console" else [(language, text)]
    return found


@dataclass
class Reader:
    """Somebody at a shell in a folder of their own."""

    kafka: KafkaSettings
    folder: Path
    stack: ExitStack
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict[str, subprocess.Popen[bytes]])
    stepped: list[PaddedBatch] = field(default_factory=list[PaddedBatch])

    def environment(self) -> dict[str, str]:
        ours = ("ROLLSTREAM_", "MAKE", "MFLAGS", "TEST_ARGS", "DEMO_ARGS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {
            **clean,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}",
            "PYTHONPATH": str(self.folder),
            "ROLLSTREAM_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "ROLLSTREAM_KAFKA__PREFIX": self.kafka.prefix,
            "ROLLSTREAM_KAFKA__PARTITIONS": json.dumps(self.kafka.partitions),
            "ROLLSTREAM_ROLLOUT_WORKER__ENGINE__KIND": "scripted",
            "ROLLSTREAM_ROLLOUT_WORKER__MODEL": "",
        }

    def run(self, *words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            words, cwd=cwd or self.folder, env=self.environment(), capture_output=True, text=True,
            timeout=COMMAND_DEADLINE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *words: str) -> None:
        """Begin a worker; it is stopped by SIGTERM, or killed if the test fails."""
        log = self.folder / f"{words[1]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(words, cwd=self.folder, env=self.environment(), stdout=output, stderr=output)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        self.workers[words[1]] = process

    def stop_workers(self) -> None:
        for name, process in self.workers.items():
            assert process.poll() is None, f"{name} ended by itself:\n{(self.folder / f'{name}.log').read_text()}"
            process.send_signal(signal.SIGTERM)
        for name, process in self.workers.items():
            code = process.wait(timeout=COMMAND_DEADLINE_S)
            assert code == 0, f"{name} ended with {code}:\n{(self.folder / f'{name}.log').read_text()}"
        self.workers.clear()

    def make(self, words: list[str]) -> None:
        """What it would do, after the environment: the demo, the suite that runs this test, or parts of it."""
        recipe = self.run("make", "-n", *words[1:], cwd=ROOT).replace("\\\n", " ").strip().splitlines()[-1].split()
        assert (
            recipe
            == {
                "demo": [".venv/bin/rollstream", "demo"],
                "test": [".venv/bin/pytest"],
                "chaos": [".venv/bin/python", "tests/chaos/run.py", "--kills", "20", "--seed", "1"],
                "sim": [
                    *(".venv/bin/python", "tests/simulation/campaign.py", "2000"),
                    *("--first", "0", "--profile", "default"),
                ],
            }[words[1]]
        )

    def topics(self, words: list[str]) -> None:
        assert f"topics under {self.kafka.prefix!r}" in self.run(*words)

    def produce(self, words: list[str]) -> None:
        questions = [{"question": f"What is {n} + {n}?", "answer": f"Twice.\n#### {2 * n}"} for n in range(QUESTIONS)]
        text = "".join(json.dumps(question) + "\n" for question in questions)
        (self.folder / words[2]).write_text(text, encoding="utf-8")
        assert f"{QUESTIONS * GROUP_SIZE} tasks sent now" in self.run(*words)

    def worker(self, words: list[str]) -> None:
        self.start(*["" if word == MODEL else word for word in words])

    def status(self, words: list[str]) -> None:
        shown = self.run(*words)
        assert "rollout" in shown
        assert "tools" in shown

    def export(self, words: list[str]) -> None:
        assert f"{2 * QUESTIONS * GROUP_SIZE} trajectories" in self.run(*words)
        table = parquet.read_table(self.folder / words[-1])
        ended = {(row["run_id"], row["status"], row["reward"]) for row in table.to_pylist()}
        assert ended == {("gsm8k", "completed", 1.0), ("checked", "completed", 1.0)}

    def evaluate(self, words: list[str]) -> None:
        """Of what the trainer's block has published."""
        shown = self.run(*words)
        assert "pass@8" in shown
        report = json.loads((self.folder / words[-1]).read_text())
        [evaluation] = report["evaluations"]
        assert evaluation["policy"]["version"] == 1
        assert evaluation["episodes"]["completed"] == QUESTIONS * 8

    def up(self, words: list[str]) -> None:
        """With the file the README points to, as it stands."""
        self.stop_workers()
        shutil.copy(ROOT / "examples" / "rollstream.toml", self.folder)
        data = self.folder / "data" / "gsm8k" / "test.jsonl"
        data.parent.mkdir(parents=True)
        shutil.copy(self.folder / "gsm8k.jsonl", data)
        self.run(*words)

    def train(self, code: str) -> None:
        """One turn of the loop."""
        policy = self.folder / "policy"
        policy.mkdir()
        (policy / "weights").write_bytes(b"weights")
        given: dict[str, Any] = {
            "kafka": self.kafka,
            "pad_token_id": 0,
            "step": self.stepped.append,
            "saved_weights": lambda: policy,
            "save_checkpoint": json.dumps,
        }
        exec(code.replace('"localhost:9092"', "kafka, max_batches=1, run_id='gsm8k', timeout_s=60"), given)
        [batch] = self.stepped
        assert len(batch.rewards) == QUESTIONS * GROUP_SIZE
        assert np.all(batch.rewards == 1.0)


async def every_task_has_its_trajectory(kafka: KafkaSettings) -> None:
    ledger = TaskLedger(frozenset({"gsm8k", "checked"}))
    topics = [kafka.topic(short) for short in ("tasks", "trajectories", "control")]

    class Done(Exception):
        """Reading has seen everything."""

    def see(message: Message, _: tuple[int, int, int]) -> None:
        match message:
            case RolloutTask():
                ledger.see_task(message)
            case Trajectory():
                ledger.see_trajectory(message)
            case ProducerProgress():
                ledger.see_progress(message)
            case _:
                pass
        if ledger.is_done():
            raise Done

    with pytest.raises(Done):
        async with asyncio.timeout(COMMAND_DEADLINE_S):
            await read_records(kafka, topics, see)


def handler(reader: Reader, words: list[str]) -> Callable[[list[str]], None]:
    handlers = {
        ("make", "demo"): reader.make,
        ("make", "test"): reader.make,
        ("make", "chaos"): reader.make,
        ("make", "sim"): reader.make,
        ("rollstream", "topics"): reader.topics,
        ("rollstream", "produce"): reader.produce,
        ("rollstream", "tool-worker"): reader.worker,
        ("rollstream", "rollout-worker"): reader.worker,
        ("rollstream", "status"): reader.status,
        ("rollstream", "trajectories"): reader.export,
        ("rollstream", "eval"): reader.evaluate,
        ("rollstream", "up"): reader.up,
    }
    assert tuple(words[:2]) in handlers, f"no test runs {shlex.join(words)!r}"
    return handlers[words[0], words[1]]


async def test_everything_the_readme_says_to_do_works_in_its_order(kafka: KafkaSettings, tmp_path: Path) -> None:
    with ExitStack() as stack:
        reader = Reader(kafka, tmp_path, stack)
        for language, text in steps():
            words = shlex.split(text, comments=True) if language == "console" else []
            if language == "console":
                if words[:2] == ["rollstream", "trajectories"]:
                    await every_task_has_its_trajectory(kafka)
                handler(reader, words)(words)
            elif file := re.match(r"# (\w+\.py)\n", text):
                (tmp_path / file[1]).write_text(text, encoding="utf-8")
            else:
                assert "TrajectoryStream(" in text, f"no test runs {text!r}"
                reader.train(text)
        assert reader.stepped, "the loop of the trainer is gone"
        assert not reader.workers, "`rollstream up` is gone"
