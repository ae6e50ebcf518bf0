"""Trains the tiny model from nothing on flawed demonstrations: about half a minute of one core.

A second thread would gain little on matrices this small, and lose much where the cores are shared.
"""
# Torch and transformers are partly typed:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUnknownParameterType=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rollstream.cli.tiny_model.arithmetic import make_task
from rollstream.cli.tiny_model.demonstrations import Demonstration, clean_demonstration, flawed_demonstration
from rollstream.cli.tiny_model.muon import Muon
from rollstream.cli.tiny_model.tokenizer import EpisodeEncoder, build_tokenizer

STEPS = 140
BATCH_SIZE = 32
MUON_LR = 0.02
ADAMW_LR = 1e-2
WARMUP_STEPS = 20
LAST_LR_SHARE = 0.05
REPORT_EVERY = 20
HELD_OUT = 128
MAX_POSITIONS = 1024
IGNORED = -100


def train(out: Path, *, seed: int, steps: int = STEPS, report: Callable[[str], None]) -> None:
    """Write model and tokenizer into the directory ``out``."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    encoder = EpisodeEncoder(tokenizer)
    model = _new_model(tokenizer)
    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: _lr_share(step, steps)) for each in optimizers]
    rng = random.Random(seed + 1)
    held_out_rng = random.Random(seed + 2)
    held_out = _batch(encoder, [clean_demonstration(make_task(held_out_rng)) for _ in range(HELD_OUT)])
    started = time.monotonic()
    for step in range(1, steps + 1):
        loss = _loss(model, *_batch(encoder, [flawed_demonstration(rng) for _ in range(BATCH_SIZE)]))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % REPORT_EVERY == 0 or step == steps:
            greedy = _share_of_episodes_greedily_right(model, *held_out)
            report(
                f"step {step}/{steps}, loss {loss.item():.3f}, clean episodes right {greedy:.2f}, "
                f"{time.monotonic() - started:.0f} s"
            )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)


def _new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def _optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_block_matrix = parameter.dim() == 2 and ".layers." in name
        (matrices if is_block_matrix else others).append(parameter)
    return [
        Muon(matrices, lr=MUON_LR),
        torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _lr_share(step: int, steps: int) -> float:
    return min((step + 1) / WARMUP_STEPS, 1.0) * max(LAST_LR_SHARE, 1.0 - step / steps)


def _batch(encoder: EpisodeEncoder, shown: Sequence[Demonstration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels, int64 [B, T]; labels are ids where the model is to learn and ``IGNORED`` elsewhere."""
    episodes = [encoder.encode(each) for each in shown]
    width = max(len(ids) for ids, _ in episodes)
    ids = torch.zeros((len(episodes), width), dtype=torch.long)
    labels = torch.full((len(episodes), width), IGNORED)
    for row, (episode_ids, mask) in enumerate(episodes):
        filled = torch.tensor(episode_ids)
        ids[row, : len(filled)] = filled
        labels[row, : len(filled)] = torch.where(torch.tensor(mask) == 1, filled, IGNORED)
    return ids, labels


def _loss(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    hidden = model.model(ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    is_learned = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[is_learned]), targets[is_learned])


@torch.no_grad()
def _share_of_episodes_greedily_right(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> float:
    targets = labels[:, 1:]
    best = model(ids).logits[:, :-1].argmax(-1)
    return ((best == targets) | (targets == IGNORED)).all(1).float().mean().item()
