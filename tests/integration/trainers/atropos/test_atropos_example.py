"""The example trainer learns over Atropos' API, and its checkpoints come back as policies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.adapters.atropos.server import ServeOptions, run_server
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

pytestmark = [pytest.mark.broker, pytest.mark.slow]

SCRIPT = Path(__file__).parents[4] / "examples" / "atropos_trainer.py"
MAKE_MODEL = """
import sys, torch
from transformers import Qwen3Config, Qwen3ForCausalLM
torch.manual_seed(0)
config = Qwen3Config(vocab_size=160, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                     num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False)
Qwen3ForCausalLM(config).save_pretrained(sys.argv[1])
"""


async def run(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


async def test_it_trains_over_http_goes_on_from_its_checkpoint_and_its_weights_become_policies(
    kafka: KafkaSettings,
    make_trajectory: Callable[..., Trajectory],
    send: Callable[[Iterable[Trajectory]], Awaitable[None]],
    until: Callable[..., Awaitable[Any]],
    trainer_of: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    await run("-c", MAKE_MODEL, str(tmp_path / "model"))
    await send(make_trajectory(group, member) for group in range(6) for member in range(2))
    checkpoints = tmp_path / "checkpoints"
    options = ServeOptions(tmp_path / "serve.json", port=0, checkpoints=checkpoints, settle_s=0.0)
    stop, port = asyncio.Event(), asyncio.get_running_loop().create_future()
    serving = asyncio.ensure_future(run_server(kafka, TrainerSettings(), options, stop, on_listening=port.set_result))
    url = f"http://127.0.0.1:{await port}"
    arguments = [str(SCRIPT), "--url", url, "--model", str(tmp_path / "model")]
    arguments += ["--checkpoints", str(checkpoints), "--batch-size", "4"]
    async with asyncio.timeout(100), ControlFollower(kafka) as control:
        first = await run(*arguments, "--steps", "2")
        second = await run(*arguments, "--steps", "3")

        async def third_version() -> PolicyVersion | None:
            policy = control.latest(PolicyVersion)
            return policy[0] if policy is not None and policy[0].version == 3 else None

        policy = await until(third_version)
        left = (await trainer_of(url).get("/status"))["queue_size"]
    stop.set()
    await serving
    steps = [line.split()[1] for line in (first + second).splitlines() if line.startswith("step")]
    assert steps == ["1", "2", "3"]
    assert left == 0, "three batches of six groups: none was trained on twice"
    assert all("reward 0.500" in line for line in first.splitlines())
    assert policy.uri == str(checkpoints / "step_3")
