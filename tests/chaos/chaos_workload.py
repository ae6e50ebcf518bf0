"""What runs in a chaos run: settings of the roles, prompts, and how each process is called."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from notebook_agent import order

from rollstream.transport.settings import KafkaSettings

EngineKind = Literal["scripted", "vllm"]
HERE = Path(__file__).parent
PARTITIONS = {
    "tasks": 8,
    "journal": 8,
    "tool-calls.default": 4,
    "tool-results": 8,
    "trajectories": 1,
    "dead-letters": 1,
}
"""One partition of trajectories: so it is defined in which order an unkilled trainer reads them."""
PREFIX = "chaos."
GROUP_SIZE = 4
DRAIN_S = 3.0
PUBLISH_EVERY = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of the cluster.

    Attributes:
        groups: prompts there are; more than can be worked off while the faults last.
        groups_in_flight: how far the trainer lets the producer run ahead.
        token_s: median time per token of the scripted engine.
        model: folder of the model for vLLM.
        is_journaled: whether episodes are; without, a run is the control of its witnesses: promises break.
    """

    engine: EngineKind
    groups: int
    groups_in_flight: int = 12
    token_s: float = 0.006
    session_timeout_s: float = 6.0
    model: str = ""
    is_journaled: bool = True


def kafka_settings(bootstrap: str, workload: Workload) -> KafkaSettings:
    """The cluster as the roles and the witnesses see it."""
    return KafkaSettings(
        bootstrap=bootstrap,
        prefix=PREFIX,
        partitions=PARTITIONS,
        session_timeout_s=workload.session_timeout_s,
    )


def write_files(workload: Workload, kafka: KafkaSettings, folder: Path, seed: int) -> None:
    """Prompts and ``rollstream.toml``."""
    rng = random.Random(f"prompts/{seed}")
    prompts = (json.dumps({"prompt": _prompt(workload.engine, rng, number)}) for number in range(workload.groups))
    (folder / "prompts.jsonl").write_text("\n".join(prompts))
    (folder / "generations").mkdir()
    (folder / "logs").mkdir()
    partitions = "\n".join(f"{json.dumps(topic)} = {count}" for topic, count in kafka.partitions.items())
    (folder / "rollstream.toml").write_text(f"""\
[kafka]
bootstrap = "{kafka.bootstrap}"
prefix = "{kafka.prefix}"
session_timeout_s = {kafka.session_timeout_s}
[kafka.partitions]
{partitions}
[rollout_worker]
max_running_episodes = 64
drain_s = {DRAIN_S}
journal = {str(workload.is_journaled).lower()}
{_engine_section(workload)}
[tool_worker]
tools = ["{HERE / "notebook_tools.py"}"]
isolation = "unsafe-local"
drain_s = {DRAIN_S}
[producer]
source = "{folder / "prompts.jsonl"}"
run_id = "chaos"
tools = ["{HERE / "notebook_tools.py"}"]
group_size = {GROUP_SIZE}
agent = "{"react" if workload.engine == "scripted" else "notebook"}"
is_paced = true
[producer.sampling]
max_tokens = {1024 if workload.engine == "scripted" else 48}
[producer.limits]
max_turns = 12
max_response_tokens = 16384
wall_clock_s = 600
tool_timeout_s = 5
""")


def _prompt(engine: EngineKind, rng: random.Random, number: int) -> str:
    if engine == "vllm":
        return f"What is {rng.randint(2, 99)} + {rng.randint(2, 99)}?"
    return f"{order(rng.randint(2, 5), rng.randint(1, 3))} Subject {number}."


def _engine_section(workload: Workload) -> str:
    if workload.engine == "vllm":
        return f"""\
agents = ["notebook_agent"]
model = "{workload.model}"
[rollout_worker.engine]
kind = "vllm"
max_num_seqs = 64"""
    return f"""\
[rollout_worker.engine]
kind = "scripted"
script = "notebook_agent:note_taker"
[rollout_worker.engine.latency]
token_s = {workload.token_s}
token_sigma = 0.5"""


def rollstream(folder: Path, bootstrap: str, role: str, *assignments: str) -> tuple[str, ...]:
    """The command of a role, with a broker of its own address."""
    options = [option for assignment in assignments for option in ("--set", assignment)]
    return (
        sys.executable, "-m", "rollstream.cli.main", "--config", str(folder / "rollstream.toml"),
        "--set", f'kafka.bootstrap="{bootstrap}"', *options, role,
    )  # fmt: skip


def worker_command(folder: Path, bootstrap: str, role: str, name: str, instance_id: str | None) -> tuple[str, ...]:
    """A worker by its name, with or without a stable membership."""
    section = role.replace("-", "_")
    assignments = [f'{section}.worker_id="{name}"']
    if instance_id is not None:
        assignments.append(f'{section}.instance_id="{instance_id}"')
    if role == "rollout-worker":
        assignments.append(f'rollout_worker.generation_log="{folder / "generations" / name}.jsonl"')
    return rollstream(folder, bootstrap, role, *assignments)


def trainer_command(folder: Path, engine: EngineKind) -> tuple[str, ...]:
    """The trainer; with a real model it publishes nothing, as it has nothing better."""
    publish_every = PUBLISH_EVERY if engine == "scripted" else 0
    return sys.executable, str(HERE / "stand_in_trainer.py"), str(folder / "trainer"), str(publish_every)
