"""TRL's own ``AsyncGRPOTrainer``, trained from the stream."""
# trl, torch and transformers are only partly annotated
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportMissingTypeArgument=false, reportUnknownParameterType=false

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Trajectory, VersionSpan
from rollstream.trainers.adapters.trl import TrlStream, last_checkpoint
from rollstream.trainers.adapters.trl_samples import rollout_samples
from rollstream.trainers.batches import TrajectoryGroup
from rollstream.trainers.trajectory_rows import ROW_SCHEMA, trajectory_rows
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings

Make = Callable[..., Trajectory]
Send = Callable[[Iterable[Trajectory]], Awaitable[None]]
Emitted = Callable[..., Awaitable[None]]
Trainer = Callable[..., Any]
GROUPS, MEMBERS = 6, 2
PACKED = ("input_ids", "completion_mask", "old_log_probs", "advantage", "group_id")

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
    pytest.mark.filterwarnings("ignore:TRL currently supports vLLM versions:UserWarning"),
]


@pytest.fixture
def scored(make_trajectory: Make, tiny_model_dir: Path) -> Callable[[int, int], Trajectory]:
    """A trajectory of the tiny model with the logprobs that transformers gives its tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32).eval()

    def scored(group: int, member: int) -> Trajectory:
        trajectory = make_trajectory(group, member, tokens=5)
        ids = np.random.default_rng(group * MEMBERS + member).integers(10, model.config.vocab_size - 10, 5)
        sequence = torch.tensor([[1, 2, 3, *ids]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(sequence).logits[0], -1)
        mask = np.array([1, 1, 0, 1, 1], dtype=np.uint8)
        drawn = np.array([logprobs[2 + place, token].item() for place, token in enumerate(ids)], dtype=np.float32)
        sample = msgspec.structs.replace(
            trajectory.samples[0],
            response_ids=ids.astype(np.int32),
            response_mask=mask,
            response_logprobs=np.where(mask, drawn, 0).astype(np.float32),
            version_spans=[VersionSpan(0, 2, 0), VersionSpan(3, 5, 0)],
        )
        return msgspec.structs.replace(trajectory, samples=[sample])

    return scored


@pytest.fixture
def trainer(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """Makes an AsyncGRPOTrainer that notes, per step, the sampling logprobs of the sequences it trains on."""
    from transformers import AttentionInterface, AutoTokenizer
    from trl.experimental.async_grpo import async_grpo_trainer
    from trl.experimental.async_grpo.async_grpo_config import AsyncGRPOConfig
    from trl.experimental.async_grpo.async_grpo_trainer import AsyncGRPOTrainer
    from trl.experimental.async_grpo.packing import TREE_ATTENTION, tree_attention

    def no_peak_flops(accelerator: Any, dtype: str) -> None:
        """Theirs asks for the name of a GPU."""

    monkeypatch.setattr(async_grpo_trainer, "get_peak_flops_per_device", no_peak_flops)

    class NotingTrainer(AsyncGRPOTrainer):
        def __init__(self, *args: Any, **options: Any) -> None:
            self.trained: list[list[tuple[float, ...]]] = []
            super().__init__(*args, **options)

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
            chosen = inputs["token_index"] >= 0
            logprobs, segments = inputs["old_log_probs"][chosen], inputs["segment_id"][chosen]
            self.trained.append([tuple(logprobs[segments == n].tolist()) for n in segments.unique()])
            return super().training_step(model, inputs, num_items_in_batch)

    def make(source: TrlStream, peft_config: Any = None, **options: Any) -> Any:
        from datasets import Dataset

        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "trl"),
            "use_cpu": True,
            "bf16": False,
            "dtype": "float32",
            "gradient_checkpointing": False,
            "token_budget": 0,
            "per_device_train_batch_size": 3,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_steps": 2,
            "report_to": [],
            "max_staleness": 100,
        }
        made = NotingTrainer(
            str(tiny_model_dir),
            args=AsyncGRPOConfig(**{**settings, **options}),
            train_dataset=Dataset.from_dict({"prompt": ["not used"]}),
            processing_class=AutoTokenizer.from_pretrained(tiny_model_dir),
            rollout_worker=source.rollout_worker,
            weight_transfer=source.weight_transfer,
            callbacks=[source.callback],
            peft_config=peft_config,
        )
        AttentionInterface.register(TREE_ATTENTION, tree_attention_on_cpu)
        return made

    yield make
    AttentionInterface.register(TREE_ATTENTION, tree_attention)


def tree_attention_on_cpu(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: None,
    *,
    tree_kv_index: Any,
    tree_cu_seqlens_q: Any,
    tree_cu_seqlens_k: Any,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Any, None]:
    """What TRL has as a kernel for GPUs: each segment of the tree attends, causally, to its path from the root.

    Returns [1, N, heads, D].
    """
    import torch

    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, dim=1)[0] for x in (key, value))
    bounds_q, bounds_k = tree_cu_seqlens_q.tolist(), tree_cu_seqlens_k.tolist()
    segments: list[Any] = []
    for segment in range(len(bounds_q) - 1):
        path = tree_kv_index[bounds_k[segment] : bounds_k[segment + 1]]
        rows = query[0, :, bounds_q[segment] : bounds_q[segment + 1]]
        scores = rows @ key[:, path].transpose(1, 2) * (scaling or query.shape[-1] ** -0.5)
        own, seen = scores.shape[1:]
        is_later = torch.ones(own, seen, dtype=torch.bool).triu(seen - own + 1)
        segments.append(scores.masked_fill(is_later, -torch.inf).softmax(-1) @ value[:, path])
    return torch.cat(segments, dim=1).transpose(0, 1).unsqueeze(0), None


def drawn(trajectory: Trajectory) -> tuple[float, ...]:
    sample = trajectory.samples[0]
    return tuple(sample.response_logprobs[sample.response_mask == 1].tolist())


@pytest.mark.broker
@pytest.mark.parametrize("token_budget", [0, 12, 24])
async def test_a_restored_trainer_trains_on_what_was_read_ahead_and_on_nothing_twice(
    kafka: KafkaSettings,
    scored: Callable[[int, int], Trajectory],
    send: Send,
    emitted: Emitted,
    trainer: Trainer,
    tiny_model_dir: Path,
    tmp_path: Path,
    token_budget: int,
) -> None:
    from safetensors.numpy import load_file

    trajectories = [scored(group, member) for group in range(GROUPS) for member in range(MEMBERS)]
    await send(trajectories)
    await emitted(GROUPS, is_finished=True)
    policies = tmp_path / "policies"

    def source() -> TrlStream:
        return TrlStream(kafka, policies=policies, groups_per_batch=2, max_staleness=None, timeout_s=30)

    first = trainer(source(), max_steps=2, token_budget=token_budget)
    await asyncio.to_thread(first.train)
    checkpoint = last_checkpoint(tmp_path / "trl")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-2"
    assert first.state.log_history[0]["ratio"] == pytest.approx(1, abs=1e-4), "TRL finds the same logprobs"

    again = source()
    again.resume_from(checkpoint)
    second = trainer(again, max_steps=20, token_budget=token_budget)
    await asyncio.to_thread(second.train, resume_from_checkpoint=str(checkpoint))

    trained = [sequence for step in [*first.trained, *second.trained] for sequence in step]
    assert sorted(trained) == sorted(map(drawn, trajectories)), "each sequence once, of two starts together"
    steps = len(first.trained) + len(second.trained)
    assert second.state.global_step == steps < 20, "the trainer stops with the stream"
    if token_budget == 0:
        assert steps == 4, "three samples a step, of groups of two"
    losses = [entry["loss"] for entry in second.state.log_history if "loss" in entry]
    assert len(losses) == steps
    assert all(map(math.isfinite, losses))

    async with ControlFollower(kafka) as control:
        announced = control.latest(PolicyVersion)
    assert announced is not None
    assert announced[0].version == steps
    published = load_file(Path(announced[0].uri) / "model.safetensors")
    began = load_file(tiny_model_dir / "model.safetensors")
    assert published.keys() == began.keys()
    for name, parameter in second.model.named_parameters():
        np.testing.assert_array_equal(published[name], parameter.detach().numpy())
    assert any((published[name] != began[name]).any() for name in began), "the model has learnt something"


@pytest.mark.broker
async def test_a_lora_is_published_merged_as_a_model_that_workers_can_load(
    kafka: KafkaSettings,
    scored: Callable[[int, int], Trajectory],
    send: Send,
    emitted: Emitted,
    trainer: Trainer,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    from peft import LoraConfig
    from safetensors.numpy import load_file

    await send(scored(group, member) for group in range(2) for member in range(MEMBERS))
    await emitted(2, is_finished=True)
    source = TrlStream(kafka, policies=tmp_path / "policies", groups_per_batch=1, timeout_s=30)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    await asyncio.to_thread(trainer(source, lora, max_steps=1, per_device_train_batch_size=2).train)
    (newest,) = (tmp_path / "policies").glob("v1-*")
    published = load_file(newest / "model.safetensors")
    began = load_file(tiny_model_dir / "model.safetensors")
    assert published.keys() == began.keys()
    changed = {name for name in began if (published[name] != began[name]).any()}
    assert changed == {name for name in began if "q_proj" in name}


@pytest.mark.broker
async def test_a_wrong_temperature_and_a_checkpoint_that_is_not_whole_are_refused(
    kafka: KafkaSettings,
    scored: Callable[[int, int], Trajectory],
    send: Send,
    emitted: Emitted,
    trainer: Trainer,
    tmp_path: Path,
) -> None:
    await send(scored(0, member) for member in range(MEMBERS))
    await emitted(1, is_finished=True)
    source = TrlStream(kafka, policies=tmp_path / "policies", groups_per_batch=1)
    with pytest.raises(SettingsError, match=r"set AsyncGRPOConfig\(temperature=1\.0\)"):
        await asyncio.to_thread(trainer(source, max_steps=1, temperature=0.5).train)
    (tmp_path / "trl" / "checkpoint-7").mkdir(parents=True)
    assert last_checkpoint(tmp_path / "trl") is None
    with pytest.raises(SettingsError, match="the trainer died while it wrote this checkpoint"):
        source.resume_from(tmp_path / "trl" / "checkpoint-7")


@pytest.mark.usefixtures("trainer")
def test_trls_packing_finds_each_sampled_tokens_logprob_also_after_an_export(make_trajectory: Make) -> None:
    from trl.experimental.async_grpo.packing import TreeRow

    group = [make_trajectory(0, member, tokens=4) for member in range(2)]
    drawn_at = {(member, place): -0.1 * (10 * member + place + 1) for member in range(2) for place in (0, 2, 3)}
    row = TreeRow()
    for member, trajectory in enumerate(group):
        sample = msgspec.structs.replace(
            trajectory.samples[0],
            response_ids=np.array([100, 200 + member, 300, 400], dtype=np.int32),
            response_mask=np.array([1, 0, 1, 1], dtype=np.uint8),
            response_logprobs=np.array([drawn_at.get((member, n), 0) for n in range(4)], dtype=np.float32),
            version_spans=[VersionSpan(0, 1, 0), VersionSpan(2, 4, 0)],
        )
        exported = _exported(msgspec.structs.replace(trajectory, samples=[sample]))
        (rollout,) = rollout_samples(
            TrajectoryGroup("run", exported.group_id, 0, 2, (exported,)), [float(member)], group_id=0, model_version=0
        )
        row.add({name: getattr(rollout, name) for name in PACKED})
    packed = row.pack()
    labels = packed["shift_labels"][packed["token_index"]].tolist()
    assert labels == [100, 300, 400] * 2
    assert packed["segment_id"].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(packed["old_log_probs"].tolist(), list(drawn_at.values()), rtol=1e-6)
    assert packed["advantages"].tolist() == [0, 0, 0, 1, 1, 1]


def _exported(trajectory: Trajectory) -> Trajectory:
    """What is left of a trajectory in the row of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(trajectory_rows(trajectory, 0, 0)), schema=ROW_SCHEMA), buffer)
    (row,) = pq.read_table(buffer).to_pylist()
    arrays = {
        name: np.array(row[name], dtype=getattr(trajectory.samples[0], name).dtype)
        for name in ("prompt_ids", "response_ids", "response_mask", "response_logprobs")
    }
    return msgspec.structs.replace(trajectory, samples=[msgspec.structs.replace(trajectory.samples[0], **arrays)])
