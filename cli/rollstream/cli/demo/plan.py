"""What the demo runs: its folder, its tasks, its settings file and its processes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rollstream.cli.command_line import CommandLine
from rollstream.cli.demo.runs import RunRecord, check_same
from rollstream.cli.restart_policy import RestartPolicy
from rollstream.cli.role_processes import kafka_environment, rollstream_command
from rollstream.cli.supervisor import ProcessSpec
from rollstream.cli.tiny_model import ANSWER_PATTERN, CALCULATOR, SYSTEM_PROMPT, make_tasks
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import EpisodeLimits, SamplingParams
from rollstream.transport.settings import KafkaSettings

GROUP_SIZE = 8
GROUPS_PER_BATCH = 16
SPARE_BATCHES = 10
"""Prompts beyond the trainer's steps, so that dropped groups never starve it; the producer stops with the trainer."""
PARTITIONS = {
    "tasks": 4,
    "journal": 4,
    "tool-calls.default": 4,
    "tool-results": 4,
    "trajectories": 4,
    "dead-letters": 1,
}
SAMPLING = SamplingParams(temperature=1.0, max_tokens=32)
LIMITS = EpisodeLimits(max_turns=3, max_response_tokens=192, wall_clock_s=60.0, tool_timeout_s=10.0)
TRAINER = "trainer"
TRAINER_SCRIPT = Path("examples") / "grpo.py"
TRAINER_THREADS = {"OMP_NUM_THREADS": "1"}
"""The engine has the other core: with two threads a step takes two to four times as long there."""
TRAINER_RESTARTS = RestartPolicy(budget=2)
"""It goes on from its checkpoint; one that fails again and again has something to say."""


@dataclass(frozen=True)
class DemoOptions:
    """What the user chose.

    Attributes:
        name: of the run, its folder under ``runs/`` and its topics.
        seed: of the tasks, of the engine and of the trainer.
        steps: optimizer steps of the trainer.
        runs_dir: where runs are kept.
    """

    name: str
    seed: int = 0
    steps: int = 40
    runs_dir: Path = Path("runs")

    @property
    def folder(self) -> Path:
        """Everything of this run."""
        return self.runs_dir / self.name

    @property
    def prefix(self) -> str:
        """Topics of this run: several demos share a broker."""
        return f"demo-{self.name}."


def default_name(now: datetime | None = None) -> str:
    """Date and time: ``20260131-142501``."""
    return (now or datetime.now(UTC).astimezone()).strftime("%Y%m%d-%H%M%S")


def open_folder(options: DemoOptions) -> RunRecord:
    """Make the folder of the run, or find it; returns how far the run is.

    Raises:
        SettingsError: the name is no folder name, or its folder holds something else or a run with other options.
    """
    if not options.name or set(options.name) - set(_NAME_LETTERS) or not options.name[0].isalnum():
        raise SettingsError(f"--name {options.name!r}: use letters, digits, '-', '_' and '.', a letter or digit first")
    wanted = RunRecord(name=options.name, seed=options.seed, steps=options.steps)
    found = RunRecord.load(options.folder)
    if found is not None:
        check_same(found, wanted)
        return found
    (options.folder / "logs").mkdir(parents=True, exist_ok=True)
    if any(entry.name not in ("logs", "lock", ".run.json") for entry in options.folder.iterdir()):
        raise SettingsError(f"{str(options.folder)!r} holds no run of the demo: choose another --name or remove it")
    wanted.save(options.folder)
    return wanted


def trainer_script() -> Path:
    """The GRPO page of this repository.

    Raises:
        SettingsError: RollStream is installed without its examples.
    """
    script = Path(__file__).parents[4] / TRAINER_SCRIPT
    if not script.is_file():
        raise SettingsError(
            f"the demo's trainer {str(TRAINER_SCRIPT)!r} is not there: run the demo from a clone of the repository"
        )
    return script


def write_tasks(options: DemoOptions) -> Path:
    """Write the prompts with their answers as JSONL."""
    path = options.folder / "tasks.jsonl"
    count = (options.steps + SPARE_BATCHES) * GROUPS_PER_BATCH
    with path.open("w", encoding="utf-8") as file:
        for task in make_tasks(options.seed, count):
            file.write(json.dumps({"prompt": task.prompt, "answer": task.answer}) + "\n")
    return path


def producer_settings(options: DemoOptions, tasks: Path) -> ProducerSettings:
    """The prompts as groups, at the trainer's pace."""
    return ProducerSettings(
        source=str(tasks),
        run_id=options.name,
        system_prompt=SYSTEM_PROMPT,
        tools=(CALCULATOR,),
        sampling=SAMPLING,
        limits=LIMITS,
        reward="regex",
        reward_arguments={"pattern": ANSWER_PATTERN},
        group_size=GROUP_SIZE,
        is_paced=True,
    )


def write_settings(options: DemoOptions, kafka: KafkaSettings, model: Path) -> Path:
    """The settings of the worker processes, as a file that can be read and used again."""
    sections: dict[str, dict[str, object]] = {
        "kafka": {"bootstrap": kafka.bootstrap, "prefix": kafka.prefix},
        "kafka.partitions": {json.dumps(topic): count for topic, count in PARTITIONS.items()},
        "rollout_worker": {"model": str(model), "max_running_episodes": 256},
        "rollout_worker.engine": {"kind": "vllm", "max_model_len": 512, "max_num_seqs": 256, "seed": options.seed},
        "tool_worker": {"tools": ["calculator"]},
    }
    path = options.folder / "rollstream.toml"
    # Strings, numbers and lists of strings are written alike in JSON and TOML.
    path.write_text(
        "\n".join(
            f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
            for section, keys in sections.items()
        )
    )
    return path


def demo_processes(options: DemoOptions, kafka: KafkaSettings, model: Path, settings_file: Path) -> list[ProcessSpec]:
    """Tool worker, rollout worker and trainer."""
    line = CommandLine(settings_file)
    logs = options.folder / "logs"
    script = trainer_script()
    trainer = (
        sys.executable,
        str(script),
        "--model",
        str(model),
        "--steps",
        str(options.steps),
        "--seed",
        str(options.seed),
        "--run-id",
        options.name,
        "--run-dir",
        str(options.folder),
        "--groups-per-batch",
        str(GROUPS_PER_BATCH),
    )
    return [
        ProcessSpec("rollout-worker", rollstream_command(line, kafka, "rollout-worker"), logs / "rollout-worker.log"),
        ProcessSpec(
            TRAINER,
            trainer,
            logs / "trainer.log",
            environment={**kafka_environment(kafka), **TRAINER_THREADS},
            may_finish=True,
            restarts=TRAINER_RESTARTS,
        ),
        ProcessSpec("tool-worker", rollstream_command(line, kafka, "tool-worker"), logs / "tool-worker.log"),
    ]


def point_latest_to(folder: Path) -> None:
    """Make ``runs/latest`` a link to the folder; what is there and no link stays."""
    link = folder.parent / "latest"
    fresh = folder.parent / f".latest-{folder.name}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(folder.name, target_is_directory=True)
    if link.is_symlink() or not link.exists():
        fresh.replace(link)
    else:
        fresh.unlink()


_NAME_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
