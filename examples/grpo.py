"""GRPO on one page: learns from the trajectory stream while rollouts go on.

    python examples/grpo.py --bootstrap 127.0.0.1:9092 --model MODEL --run-dir runs/mine --steps 30

Run again with the same --run-dir, it goes on from its checkpoint: no trajectory is skipped or trained on twice. All of
RollStream that a trainer needs is in ``main``: the stream, its checkpoint, batches with advantages, policies, figures.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch and transformers are annotated in part only)

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rollstream.trainers import ADVANTAGES, TrainingBatch, TrajectoryGroup, TrajectoryStream
from rollstream.trainers.torch_data.tensors import PaddedTensors, padded_tensors

CLIP_LOW, CLIP_HIGH = 0.8, 1.2
MAX_GRADIENT_NORM = 1.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A GRPO trainer on the trajectory stream.")
    parser.add_argument("--bootstrap", default=os.environ.get("ROLLSTREAM_KAFKA__BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--prefix", default=os.environ.get("ROLLSTREAM_KAFKA__PREFIX", "rollstream."))
    parser.add_argument("--model", required=True, help="folder or name of the model that rollouts began with")
    parser.add_argument("--run-dir", type=Path, required=True, help="gets checkpoint.pt and policies/")
    parser.add_argument("--run-id", help="train on this run of the producer only")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--groups-per-batch", type=int, default=16)
    parser.add_argument("--pipeline-depth", type=int, default=1, help="batches rolled out ahead: 0 is synchronous")
    parser.add_argument("--max-staleness", type=int, default=4, help="in policy versions")
    parser.add_argument("--advantages", choices=sorted(ADVANTAGES), default="grpo")
    parser.add_argument("--policy-store", help="path or URL of policies; default: policies/ in the run's folder")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows-per-pass", type=int, default=128, help="samples in one forward pass")
    return parser.parse_args()


def token_logprobs(model: Any, ids: torch.Tensor, attention: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """float32 [number of ones in mask]: log p of each sampled token given all before it; mask [N, T - 1] is shifted."""
    hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state[:, :-1][mask]
    logits = model.lm_head(hidden).float()
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:][mask][:, None])[:, 0]


def train_step(
    model: Any, optimizer: torch.optim.Optimizer, batch: PaddedTensors, rows_per_pass: int
) -> dict[str, float]:
    """One clipped policy-gradient step; rows without an advantage are left out. Sum over tokens / tokens kept."""
    advantages: Any = batch.get("advantages")
    kept = advantages.nonzero()[:, 0]
    tokens = int(batch["response_mask"][kept].sum())
    loss_sum = drift = 0.0
    optimizer.zero_grad()
    for rows in kept.split(rows_per_pass):
        ids, mask = batch["input_ids"][rows], batch["response_mask"][rows, 1:]
        now = token_logprobs(model, ids, batch["attention_mask"][rows], mask)
        difference = now - batch["logprobs"][rows, 1:][mask]
        ratio = difference.exp()
        weight = advantages[rows][:, None].expand_as(mask)[mask]
        loss = -torch.min(ratio * weight, ratio.clamp(CLIP_LOW, CLIP_HIGH) * weight).sum() / tokens
        loss.backward()
        loss_sum += loss.item()
        drift = max(drift, difference.abs().max().item())
    if len(kept):
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
    return {"loss": loss_sum, "tokens": tokens, "drift": drift, "kept": len(kept) / len(advantages)}


def save_checkpoint(
    path: Path, version: int, model: Any, optimizer: torch.optim.Optimizer, stream: dict[str, Any]
) -> None:
    """Model, optimizer and stream in one file, on disk before it replaces the last one: they belong together."""
    part = path.with_suffix(".part")
    saved = {"version": version, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream}
    with part.open("wb") as file:
        torch.save(saved, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def mean_reward(batch: TrainingBatch) -> float:
    rewards = [trajectory.reward for trajectory in batch.trajectories() if trajectory.reward is not None]
    return sum(rewards) / len(rewards)


def show_evaluation(group: TrajectoryGroup) -> None:
    """Groups of evaluation tasks (``rollstream produce --eval``) are no part of any batch."""
    print(f"evaluated  {group.run_id}  group {group.group_index}  rewards {group.rewards.tolist()}", flush=True)


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    weights, checkpoint = args.run_dir / "weights", args.run_dir / "checkpoint.pt"
    args.run_dir.mkdir(parents=True, exist_ok=True)
    stream = TrajectoryStream(
        args.bootstrap,
        prefix=args.prefix,
        on_evaluation=show_evaluation,
        run_id=args.run_id,
        groups_per_batch=args.groups_per_batch,
        pipeline_depth=args.pipeline_depth,
        max_staleness=args.max_staleness,
        max_batches=args.steps,
        policy_store=args.policy_store or str(args.run_dir / "policies"),
    )
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    pad = model.config.pad_token_id or 0
    version = 0
    with stream:
        if checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            version = saved["version"]
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            stream.load_state_dict(saved["stream"])
            print(f"goes on from version {version}", flush=True)
        asked = time.perf_counter()
        for batch in stream:
            begun = time.perf_counter()
            rows = padded_tensors(batch, pad, advantages=args.advantages)
            result = train_step(model, optimizer, rows, args.rows_per_pass)
            version += 1
            shutil.rmtree(weights, ignore_errors=True)
            model.save_pretrained(weights)
            stream.publish_policy(version, weights)  # copied to <store>/<lineage>-<version>, then announced
            save_checkpoint(checkpoint, version, model, optimizer, stream.state_dict())
            stream.commit()
            stream.prune_policies(keep=2)
            stats = stream.stats()
            print(
                f"step {version}  reward {mean_reward(batch):.3f}  loss {result['loss']:+.4f}  "
                f"kept {result['kept']:.2f}  tokens {result['tokens']}  drift {result['drift']:.1e}  "
                f"staleness {stats.mean_staleness:.2f} (max {stats.max_staleness})  "
                f"wait {begun - asked:.2f} s  train {time.perf_counter() - begun:.2f} s",
                flush=True,
            )
            asked = time.perf_counter()


if __name__ == "__main__":
    main()
