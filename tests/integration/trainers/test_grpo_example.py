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
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SCRIPT = Path(__file__).parents[3] / "examples" / "grpo.py"
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
        subprocess.run, [sys.executable, *arguments], capture_output=True, text=True, timeout=100, check=False
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
    assert sorted(path.name for path in (run_dir / "policies").iterdir()) == ["v1", "v2"]

    second = await run(*arguments, "--steps", "3")
    assert "goes on from version 2" in second
    assert [line.split()[1] for line in second.splitlines() if line.startswith("step")] == ["3"]
    assert sorted(path.name for path in (run_dir / "policies").iterdir()) == ["v2", "v3"]
    async with ControlFollower(kafka) as control:
        latest = control.latest(PolicyVersion)
    assert latest is not None
    files = fetch_policy(latest[0].uri, latest[0].manifest_sha256, tmp_path / "cache")
    assert latest[0].version == 3
    assert json.loads((files / "config.json").read_text())["vocab_size"] == 160
