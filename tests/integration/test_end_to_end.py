"""Everything real at once, in separate processes: broker, vLLM, tool worker, producer, trainer. Every token is checked.

What is exported is scored again with transformers in float32, token by token, under the weights its version names.
"""
# transformers, torch and pyarrow are annotated in part only:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingTypeArgument=false

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from rollstream.cli.tiny_model import ANSWER_PATTERN, SYSTEM_PROMPT, make_tasks
from rollstream.rollout_workers.engine import Generation, PolicyRef
from rollstream.schemas.trajectories import VersionSpan
from rollstream.trainers import TrajectoryStream
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]

GROUPS, GROUP_SIZE = 24, 4
MAX_LOGPROB_DIFFERENCE = 1e-4


class Commands:
    """Calls the `rollstream` of this environment against a test's own topics."""

    def __init__(self, kafka: KafkaSettings, folder: Path) -> None:
        self._folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("ROLLSTREAM_")}
        self._environment |= {
            "ROLLSTREAM_KAFKA__BOOTSTRAP": kafka.bootstrap,
            "ROLLSTREAM_KAFKA__PREFIX": kafka.prefix,
            "ROLLSTREAM_KAFKA__PARTITIONS": json.dumps(dict(kafka.partitions)),
        }

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            self._command(arguments), env=self._environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    @contextmanager
    def running(self, name: str, *arguments: str) -> Generator[Path]:
        """A role for as long as the block runs; it has to leave cleanly within the drain limit. Yields its log.

        A producer ends by itself, perhaps just when it is told to.
        """
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._command(arguments), env=self._environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield log
            if name != "produce":
                process.terminate()
            assert process.wait(60) == 0, log.read_text()[-3000:]
        finally:
            process.kill()
            process.wait()

    @staticmethod
    def _command(arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "rollstream.cli.main", *arguments]


def write_prompts(path: Path, seed: int) -> None:
    lines = [json.dumps({"question": task.prompt, "answer": task.answer}) for task in make_tasks(seed, GROUPS)]
    path.write_text("\n".join(lines))


def produce_arguments(prompts: Path) -> list[str]:
    return [
        *(
            "produce",
            str(prompts),
            "--run",
            "first",
            "--pace",
            "--system-prompt",
            SYSTEM_PROMPT,
            "--tools",
            "calculator",
        ),
        *("--reward", "regex", "--reward-arg", f"pattern={ANSWER_PATTERN}"),
        *("--group-size", str(GROUP_SIZE), "--max-tokens", "32", "--max-turns", "3"),
    ]


def read_export(directory: Path) -> list[dict[str, Any]]:
    return parquet.read_table(directory).to_pylist()


def check_record(row: dict[str, Any], vocab_size: int) -> None:
    """Mask, lengths and versions of one sample."""
    length = len(row["response_ids"])
    assert length == len(row["response_mask"]) == len(row["response_logprobs"]) == len(row["response_versions"])
    assert 0 < sum(row["response_mask"]) <= length
    assert max(*row["prompt_ids"], *row["response_ids"]) < vocab_size
    for mask, logprob, version in zip(
        row["response_mask"], row["response_logprobs"], row["response_versions"], strict=True
    ):
        assert (version >= 0 and logprob <= 0) if mask else (version == -1 and logprob == 0)
    sampled = {version for version in row["response_versions"] if version >= 0}
    assert sampled <= set(range(row["policy_version_min"], row["policy_version_max"] + 1))


def rescored(
    row: dict[str, Any], policies: dict[PolicyRef, Path], difference: Callable[..., float]
) -> tuple[float, set[PolicyRef]]:
    """Largest difference to transformers over the sampled tokens of a sample, and the policies that drew them."""
    worst, used = 0.0, set[PolicyRef]()
    for span in row["version_spans"]:
        start, end = span["start"], span["end"]
        policy = PolicyRef(span["lineage"], span["version"])
        used.add(policy)
        generation = Generation(
            ids=row["response_ids"][start:end],
            logprobs=row["response_logprobs"][start:end],
            finish_reason="stop",
            spans=[VersionSpan(0, end - start, policy.version, policy.lineage)],
        )
        worst = max(worst, difference(policies, row["prompt_ids"] + row["response_ids"][:start], generation))
    return worst, used


def test_what_is_trained_on_is_what_was_sampled_to_the_last_logprob(
    kafka: KafkaSettings,
    tiny_model_dir: Path,
    policy_dirs: list[Path],
    logprob_difference: Callable[..., float],
    tmp_path: Path,
) -> None:
    commands = Commands(kafka, tmp_path)
    prompts = tmp_path / "arithmetic.jsonl"
    write_prompts(prompts, seed=11)
    trained: list[str] = []
    version = 0
    with ExitStack() as stack:
        stack.enter_context(commands.running("tools", "tool-worker", "--tools", "calculator"))
        stack.enter_context(commands.running("rollout", "rollout-worker", "--model", str(tiny_model_dir)))
        stream = stack.enter_context(TrajectoryStream(kafka, run_id="first", groups_per_batch=4, max_staleness=100))
        stack.enter_context(commands.running("produce", *produce_arguments(prompts)))
        for batch in stream:
            trained += [trajectory.trajectory_id for trajectory in batch.trajectories()]
            version += 1
            directory = tmp_path / "policies" / f"v{version}"
            shutil.copytree(policy_dirs[version % len(policy_dirs)], directory)
            stream.publish_policy(version, directory)
            stream.commit()
    assert version == GROUPS // 4
    assert Counter(trained) == Counter(set(trained))
    assert len(trained) == GROUPS * GROUP_SIZE

    commands.run("trajectories", "export", str(tmp_path / "export"))
    rows = read_export(tmp_path / "export")
    assert {row["trajectory_id"] for row in rows} == set(trained)
    vocab_size = json.loads((tiny_model_dir / "config.json").read_text())["vocab_size"]
    (lineage,) = {span["lineage"] for row in rows for span in row["version_spans"] if span["version"]}
    policies = {PolicyRef(0, 0): tiny_model_dir} | {
        PolicyRef(lineage, number): policy_dirs[number % len(policy_dirs)] for number in range(1, version + 1)
    }
    worst, used = 0.0, set[PolicyRef]()
    for row in rows:
        check_record(row, vocab_size)
        difference, drew = rescored(row, policies, logprob_difference)
        worst = max(worst, difference)
        used |= drew
    assert worst <= MAX_LOGPROB_DIFFERENCE
    assert len(used) >= 3
    assert sum(row["metrics"] is not None and dict(row["metrics"])["tool_calls"] > 0 for row in rows) > len(rows) / 4
