"""The example trainer on synthetic trajectories: it learns, publishes, and goes on where it was killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.control import ControlFollower
from rollstream.transport.policy_files import fetch_policy
from rollstream.transport.policy_storage import PolicyStorage
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).parents[3] / "examples" / "grpo.py"
KILLED = Path(__file__).with_name("killed_grpo.py")
KINDS = ("killed", "undisturbed")
STEPS = 12
MAKE_MODEL = """
import sys, torch
from transformers import Qwen3Config, Qwen3ForCausalLM
torch.manual_seed(0)
config = Qwen3Config(vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False)
Qwen3ForCausalLM(config).save_pretrained(sys.argv[1])
"""


async def run(*arguments: str) -> str:
    completed = await asyncio.to_thread(
        subprocess.run, [sys.executable, *arguments], capture_output=True, text=True, timeout=580, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


async def test_it_trains_publishes_and_resumes(
    kafka: KafkaSettings,
    make_trajectory: Callable[..., Trajectory],
    send: Callable[[Iterable[Trajectory]], Awaitable[None]],
    tmp_path: Path,
) -> None:
    await run("-c", MAKE_MODEL, str(tmp_path / "model"))
    await send(make_trajectory(group, member) for group in range(6) for member in range(2))
    run_dir = tmp_path / "run"
    arguments = [
        *(str(SCRIPT), "--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--run-dir", str(run_dir)),
        *("--model", str(tmp_path / "model"), "--groups-per-batch", "2"),
    ]
    first = await run(*arguments, "--steps", "2")
    assert "step 2  reward 0.500" in first
    assert stored_versions(run_dir) == [1, 2]

    second = await run(*arguments, "--steps", "3")
    assert "goes on from version 2" in second
    assert [line.split()[1] for line in second.splitlines() if line.startswith("step")] == ["3"]
    assert stored_versions(run_dir) == [2, 3]
    async with ControlFollower(kafka) as control:
        latest = control.latest(PolicyVersion)
    assert latest is not None
    files = fetch_policy(latest[0].uri, latest[0].manifest_sha256, tmp_path / "cache")
    assert latest[0].version == 3
    assert json.loads((files / "config.json").read_text())["vocab_size"] == 160


async def test_killed_before_every_line_of_its_own_it_becomes_the_same_model(
    kafka: KafkaSettings,
    make_trajectory: Callable[..., Trajectory],
    send: Callable[[Iterable[Trajectory]], Awaitable[None]],
    tmp_path: Path,
) -> None:
    """The weights after the last step hold every step, its batch and its optimizer state: nothing else may differ."""
    await run("-c", MAKE_MODEL, str(tmp_path / "model"))
    await send(
        make_trajectory(group, member, worker_id=f"{group}/{member}") for group in range(STEPS) for member in range(2)
    )

    killed = await killed_run(kafka, tmp_path / "killed", tmp_path / "model", "kills")
    undisturbed = await killed_run(kafka, tmp_path / "undisturbed", tmp_path / "model", "none")

    assert killed["killed"] == killed["lines"]
    assert undisturbed["killed"] == []
    assert trained(tmp_path / "killed") == trained(tmp_path / "undisturbed")
    assert len({name for batch in trained(tmp_path / "killed") for name in batch}) == 2 * STEPS
    weights = [(tmp_path / kind / "run" / "weights" / "model.safetensors").read_bytes() for kind in KINDS]
    assert weights[0] == weights[1]
    assert stored_versions(tmp_path / "killed" / "run") == [STEPS - 1, STEPS]


async def killed_run(kafka: KafkaSettings, folder: Path, model: Path, kills: str) -> dict[str, list[int]]:
    folder.mkdir()  # noqa: ASYNC240 -- a test may make a folder
    output = await run(
        *(str(KILLED), str(SCRIPT), str(folder), kills),
        *("--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix, "--model", str(model)),
        *("--run-dir", str(folder / "run"), "--groups-per-batch", "1", "--steps", str(STEPS), "--max-staleness", "100"),
    )
    return json.loads(output)


def trained(folder: Path) -> list[list[str]]:
    paths = sorted((folder / "trained").iterdir(), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in paths]


def stored_versions(run_dir: Path) -> list[int]:
    return sorted(policy.identity.version for policy in PolicyStorage(str(run_dir / "policies")).list_policies())
