"""LoRA adapters in the real engine, against transformers and PEFT in float32."""
# PEFT and torch are partly typed:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rollstream.rollout_workers.engine import AS_IT_CAME, Generation, PolicyChangedError, PolicyRef
from rollstream.rollout_workers.engine_settings import VllmSettings, build_engine
from rollstream.rollout_workers.vllm_engine import VllmEngine
from rollstream.schemas.errors import PolicyFilesError
from rollstream.schemas.tasks import SamplingParams

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # vLLM, torch and PEFT warn about themselves while they are imported
]

PROMPT = list(range(10, 60))
TOLERANCE = 1e-3
RANK = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_model_dir: Path) -> AsyncIterator[VllmEngine]:
    engine = await build_engine(VllmSettings(max_lora_rank=RANK, max_adapters=3), str(tiny_model_dir))
    assert isinstance(engine, VllmEngine)
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def adapter_dirs(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five adapters, as PEFT saves them, each of which changes what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    directories: list[Path] = []
    for number in range(5):
        torch.manual_seed(number)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
        targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"][: number + 1]
        adapted: Any = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=24, target_modules=targets))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.08)
        directories.append(tmp_path_factory.mktemp("adapter") / f"v{number}")
        adapted.save_pretrained(directories[-1])
    return directories


@cache
def scorer(model: Path, adapter: Path | None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return base if adapter is None else PeftModel.from_pretrained(base, adapter).eval()


def difference(model: Path, adapter: Path | None, generation: Generation) -> float:
    """Largest difference of a generation's logprobs to those of the model under one adapter."""
    import torch

    with torch.no_grad():
        logits = scorer(model, adapter)(torch.tensor([[*PROMPT, *generation.ids]])).logits[0]
    logprobs = torch.log_softmax(logits, -1)[len(PROMPT) - 1 : -1]
    expected = [float(logprobs[index, token]) for index, token in enumerate(generation.ids)]
    return max(abs(a - b) for a, b in zip(expected, generation.logprobs, strict=True))


async def ask(engine: VllmEngine, *, policy: PolicyRef | None = None, max_tokens: int = 60) -> Generation:
    return await engine.generate(
        PROMPT, SamplingParams(), "turn", max_tokens=max_tokens, stop_token_ids=[], policy=policy
    )


def policy_of(generation: Generation) -> PolicyRef:
    (span,) = generation.spans
    assert (span.start, span.end) == (0, len(generation.ids))
    return PolicyRef(span.lineage, span.version)


async def test_new_adapters_serve_new_requests_and_running_ones_end_on_theirs(
    engine: VllmEngine, tiny_model_dir: Path, adapter_dirs: list[Path]
) -> None:
    files: dict[PolicyRef, Path | None] = {AS_IT_CAME: None}
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(ask(engine, max_tokens=500)) for _ in range(2)]
        await ask(engine, max_tokens=5)
        for version, directory in enumerate(adapter_dirs, start=1):
            policy = PolicyRef(5, version)
            files[policy] = directory
            await engine.update_weights(directory, policy, kind="lora")
            assert engine.policy == policy
            turns += [group.create_task(ask(engine, max_tokens=length)) for length in (200, 30)]
    generations = [turn.result() for turn in turns]
    drawn = [policy_of(generation) for generation in generations]
    assert drawn == [AS_IT_CAME] * 2 + [PolicyRef(5, version) for version in range(1, 6) for _ in range(2)]
    for generation in generations:
        own = files[policy_of(generation)]
        assert difference(tiny_model_dir, own, generation) <= TOLERANCE
        others = [difference(tiny_model_dir, other, generation) for other in files.values() if other != own]
        assert min(others) > 100 * TOLERANCE
    assert engine.held_policies == frozenset()


async def test_pinned_requests_are_drawn_by_their_adapter_beside_newer_ones(
    engine: VllmEngine, tiny_model_dir: Path, adapter_dirs: list[Path]
) -> None:
    pinned, newest = PolicyRef(6, 1), PolicyRef(6, 2)
    await engine.hold_adapter(adapter_dirs[0], pinned)
    await engine.update_weights(adapter_dirs[1], newest, kind="lora")
    assert engine.held_policies == {pinned}
    old, base, new = await asyncio.gather(ask(engine, policy=pinned), ask(engine, policy=AS_IT_CAME), ask(engine))
    assert [policy_of(generation) for generation in (old, base, new)] == [pinned, AS_IT_CAME, newest]
    for generation, directory in ((old, adapter_dirs[0]), (base, None), (new, adapter_dirs[1])):
        assert difference(tiny_model_dir, directory, generation) <= TOLERANCE
    engine.release_adapter(pinned)
    await engine.update_weights(adapter_dirs[2], PolicyRef(6, 3), kind="lora")
    with pytest.raises(PolicyChangedError, match="pinned to policy 6:1"):
        await ask(engine, policy=pinned)


async def test_what_does_not_fit_is_refused_by_name_and_what_served_serves_on(
    engine: VllmEngine, tiny_model_dir: Path, adapter_dirs: list[Path], tmp_path: Path
) -> None:
    await engine.update_weights(adapter_dirs[2], PolicyRef(7, 1), kind="lora")
    odd = tmp_path / "odd"
    shutil.copytree(adapter_dirs[0], odd)
    config = json.loads((odd / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(PolicyFilesError, match="use_dora"):
        await engine.update_weights(odd, PolicyRef(7, 2), kind="lora")
    with pytest.raises(PolicyFilesError, match="whole model and this engine serves LoRA adapters"):
        await engine.update_weights(tiny_model_dir, PolicyRef(7, 2))
    generation = await ask(engine)
    assert policy_of(generation) == engine.policy == PolicyRef(7, 1)
    assert difference(tiny_model_dir, adapter_dirs[2], generation) <= TOLERANCE


async def test_the_way_back_to_the_model_as_it_came_is_free(engine: VllmEngine, tiny_model_dir: Path) -> None:
    await engine.update_weights(None, AS_IT_CAME)
    generation = await ask(engine)
    assert policy_of(generation) == AS_IT_CAME
    assert difference(tiny_model_dir, None, generation) <= TOLERANCE
