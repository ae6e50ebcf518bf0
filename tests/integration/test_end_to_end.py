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

import pytest

from rollstream.cli.tiny_model import ANSWER_PATTERN, SYSTEM_PROMPT, make_tasks
from rollstream.rollout_workers.engine import Generation, PolicyRef
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers import TrajectoryStream
from rollstream.trainers.trajectory_reading import read_trajectories
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


def check_sample(trajectory: Trajectory, sample: Sample, vocab_size: int) -> None:
    """Mask, ids and versions of one sample."""
    mask, versions = sample.response_mask.astype(bool), sample.response_versions
    assert mask.any()
    assert max(*sample.prompt_ids, *sample.response_ids) < vocab_size
    assert (sample.response_logprobs[mask] <= 0).all()
    assert (sample.response_logprobs[~mask] == 0).all()
    assert (versions[~mask] == -1).all()
    assert set(versions[mask]) <= set(range(trajectory.policy_version_min, trajectory.policy_version_max + 1))


def rescored(
    sample: Sample, policies: dict[PolicyRef, Path], difference: Callable[..., float]
) -> tuple[float, set[PolicyRef]]:
    """Largest difference to transformers over the sampled tokens of a sample, and the policies that drew them."""
    worst, used = 0.0, set[PolicyRef]()
    prompt, response = sample.prompt_ids.tolist(), sample.response_ids.tolist()
    for span in sample.version_spans:
        used.add(PolicyRef(span.lineage, span.version))
        generation = Generation(
            ids=response[span.start : span.end],
            logprobs=sample.response_logprobs[span.start : span.end].tolist(),
            finish_reason="stop",
            spans=[VersionSpan(0, span.end - span.start, span.version, span.lineage)],
        )
        worst = max(worst, difference(policies, prompt + response[: span.start], generation))
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
    exported = list(read_trajectories(str(tmp_path / "export")))
    assert {trajectory.trajectory_id for trajectory in exported} == set(trained)
    samples = [(trajectory, sample) for trajectory in exported for sample in trajectory.samples]
    vocab_size = json.loads((tiny_model_dir / "config.json").read_text())["vocab_size"]
    (lineage,) = {span.lineage for _, sample in samples for span in sample.version_spans if span.version}
    policies = {PolicyRef(0, 0): tiny_model_dir} | {
        PolicyRef(lineage, number): policy_dirs[number % len(policy_dirs)] for number in range(1, version + 1)
    }
    worst, used = 0.0, set[PolicyRef]()
    for trajectory, sample in samples:
        check_sample(trajectory, sample, vocab_size)
        difference, drew = rescored(sample, policies, logprob_difference)
        worst = max(worst, difference)
        used |= drew
    assert worst <= MAX_LOGPROB_DIFFERENCE
    assert len(used) >= 3
    assert sum(trajectory.metrics["tool_calls"] > 0 for trajectory in exported) > len(exported) / 4
