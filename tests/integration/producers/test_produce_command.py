"""The command as a person types it."""

# ruff: noqa: ASYNC220  -- a test may block its own loop

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollstream.producers.task_log import read_task_log
from rollstream.transport.settings import KafkaSettings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {n} + {n}?", "answer": f"Twice {n}.\n#### {2 * n}"} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rollstream(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ROLLSTREAM_")}
    command = [sys.executable, "-m", "rollstream.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=60, check=False)


ANSWERS = ["--answer-after", "####", "--reward", "numeric"]


@pytest.mark.broker
def test_one_command_emits_a_dataset_and_the_next_repeats_nothing(data: Path, kafka: KafkaSettings) -> None:
    place = ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix]
    arguments = ["produce", str(data), "--run", "r", *ANSWERS, *place, "--group-size", "2", "--no-pace"]
    first = rollstream(*arguments, "--tools", "calculator", cwd=data.parent)
    assert first.returncode == 0, first.stderr
    assert "run 'r' finished: 20 of 20 groups are in the topic, 40 tasks sent now" in first.stdout
    again = rollstream(*arguments, "--tools", "calculator", cwd=data.parent)
    assert "0 tasks sent now, 40 were there before" in again.stdout
    other = rollstream(*arguments, cwd=data.parent)
    assert other.returncode == 1
    assert "run 'r' was begun with other tools" in other.stderr


@pytest.mark.broker
async def test_the_command_sends_what_the_log_then_holds(data: Path, kafka: KafkaSettings) -> None:
    place = ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--eval"]
    done = rollstream("produce", str(data), "--run", "r", *place, "--limit", "3", cwd=data.parent)
    assert done.returncode == 0, done.stderr
    assert len((await read_task_log(kafka, "r")).task_ids) == 3 * 8


@pytest.mark.broker
async def test_a_producer_killed_in_the_middle_loses_nothing(tmp_path: Path, kafka: KafkaSettings) -> None:
    rows, group_size = 3000, 8
    many = tmp_path / "many.jsonl"
    many.write_text("".join(json.dumps({"question": f"What is {n} + {n}?"}) + "\n" for n in range(rows)))
    arguments = ["produce", str(many), "--run", "r", "--no-pace", "--group-size", str(group_size)]
    arguments += ["--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix]
    process = subprocess.Popen([sys.executable, "-m", "rollstream.cli.main", *arguments], stderr=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(60):
            while (await read_task_log(kafka, "r")).records_read < 1000:
                assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    left = await read_task_log(kafka, "r")
    assert len(left.task_ids) < rows * group_size, "it was killed too late to show anything"
    done = rollstream(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    log = await read_task_log(kafka, "r")
    assert len(log.task_ids) == rows * group_size
    assert log.records_read - len(log.task_ids) <= 64 * group_size, "only sends under way may have been repeated"


def test_a_dry_run_shows_prompts_and_needs_no_broker(data: Path) -> None:
    shown = rollstream(
        "produce", str(data), "--run", "r", *ANSWERS, "--dry-run", "2", "--prompt-template", "Q: {question}",
        "--system-prompt", "Be brief.", "--tools", "calculator", "--skip", "4", cwd=data.parent,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        "16 prompts x 8 tasks from problems.jsonl, template over ['question'], answer from 'answer'",
        "tools: calculator",
        "",
        "--- problems.jsonl:5, answer '8'",
        "[system] Be brief.",
        "[user] Q: What is 4 + 4?",
        "",
        "--- problems.jsonl:6, answer '10'",
        "[system] Be brief.",
        "[user] Q: What is 5 + 5?",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "there is no file 'missing.jsonl'"),
        (["problems.jsonl", "--tools", "abacus"], "'abacus' is neither a built-in tool"),
        (["problems.jsonl", "--reward-arg", "nonsense", "--reward", "exact"], "expected KEY=VALUE"),
        (["problems.jsonl", "--temperature", "-1"], "sampling.temperature is -1.0: must be finite and >= 0"),
        (["problems.jsonl", "--prompt-column", "text"], "prompt column 'text' is not in the data"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(data: Path, arguments: list[str], message: str) -> None:
    refused = rollstream("produce", *arguments, "--run", "r", "--dry-run", "1", cwd=data.parent)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_without_a_source_the_command_says_what_it_wants(tmp_path: Path) -> None:
    refused = rollstream("produce", "--dry-run", "1", cwd=tmp_path)
    assert refused.returncode == 1
    assert "nothing to produce" in refused.stderr or "source" in refused.stderr
