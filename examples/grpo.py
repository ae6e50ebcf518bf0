"""GRPO on one page: learns from the trajectory stream while rollouts go on.

    python examples/grpo.py --bootstrap 127.0.0.1:9092 --model MODEL --run-dir runs/mine --steps 30

Run again with the same --run-dir, it goes on from its checkpoint: no trajectory is skipped or trained on twice.
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

from rollstream.trainers import TrainingBatch, TrajectoryStream

CLIP_LOW, CLIP_HIGH = 0.8, 1.2
MAX_GRADIENT_NORM = 1.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A GRPO trainer on the trajectory stream.")
    parser.add_argument("--bootstrap", default=os.environ.get("ROLLSTREAM_KAFKA__BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--prefix", default=os.environ.get("ROLLSTREAM_KAFKA__PREFIX", "rollstream."))
    parser.add_argument("--model", required=True, help="folder or name of the model that rollouts began with")
    parser.add_argument("--run-dir", type=Path, required=True, help="gets policies/ and checkpoint.pt")
    parser.add_argument("--run-id", help="train on this run of the producer only")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--groups-per-batch", type=int, default=16)
    parser.add_argument("--max-staleness", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows-per-pass", type=int, default=128, help="samples in one forward pass")
    return parser.parse_args()


def group_advantages(batch: TrainingBatch) -> list[torch.Tensor]:
    """Per group (r - mean) / (std + 1e-4), a number per trajectory; all 0 where all rewards are equal."""
    rewards = [torch.from_numpy(group.rewards) for group in batch.groups]
    return [(r - r.mean()) / (r.std() + 1e-4) if r.unique().numel() > 1 else torch.zeros_like(r) for r in rewards]


def token_logprobs(model: Any, ids: torch.Tensor, attention: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """float32 [number of ones in mask]: log p of each sampled token given all before it; mask [N, T - 1] is shifted."""
    hidden = model.model(input_ids=ids, attention_mask=attention).last_hidden_state[:, :-1][mask]
    logits = model.lm_head(hidden).float()
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:][mask][:, None])[:, 0]


def train_step(
    model: Any, optimizer: torch.optim.Optimizer, batch: TrainingBatch, pad: int, rows_per_pass: int
) -> dict[str, float]:
    """One clipped policy-gradient step; groups without variance are left out. Sum over tokens / tokens kept."""
    padded = batch.to_padded(pad)
    advantages = group_advantages(batch)
    advantage = torch.stack([advantages[g][m] for g, m in zip(padded.groups, padded.members, strict=True)])
    kept = advantage.nonzero()[:, 0]
    tokens = int(padded.response_mask[kept.numpy()].sum())
    loss_sum = drift = 0.0
    optimizer.zero_grad()
    for rows in kept.split(rows_per_pass):
        ids, attention = torch.from_numpy(padded.input_ids)[rows], torch.from_numpy(padded.attention_mask)[rows]
        mask = torch.from_numpy(padded.response_mask)[rows, 1:].bool()
        difference = token_logprobs(model, ids, attention, mask) - torch.from_numpy(padded.logprobs)[rows, 1:][mask]
        ratio = difference.exp()
        weight = advantage[rows][:, None].expand_as(mask)[mask]
        loss = -torch.min(ratio * weight, ratio.clamp(CLIP_LOW, CLIP_HIGH) * weight).sum() / tokens
        loss.backward()
        loss_sum += loss.item()
        drift = max(drift, difference.abs().max().item())
    if len(kept):
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
    return {"loss": loss_sum, "tokens": tokens, "drift": drift, "kept": len(kept) / len(advantage)}


def save_checkpoint(
    path: Path, version: int, model: Any, optimizer: torch.optim.Optimizer, stream: dict[str, Any]
) -> None:
    """Model, optimizer and stream in one file, replaced in one step: they belong together."""
    part = path.with_suffix(".part")
    torch.save(
        {"version": version, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream}, part
    )
    part.replace(path)


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    policies, checkpoint = args.run_dir / "policies", args.run_dir / "checkpoint.pt"
    policies.mkdir(parents=True, exist_ok=True)
    stream = TrajectoryStream(
        args.bootstrap,
        prefix=args.prefix,
        run_id=args.run_id,
        groups_per_batch=args.groups_per_batch,
        max_staleness=args.max_staleness,
        max_batches=args.steps,
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
            result = train_step(model, optimizer, batch, pad, args.rows_per_pass)
            version += 1
            directory = policies / f"v{version}"
            shutil.rmtree(directory, ignore_errors=True)
            model.save_pretrained(directory)
            stream.publish_policy(version, directory)
            save_checkpoint(checkpoint, version, model, optimizer, stream.state_dict())
            stream.commit()
            shutil.rmtree(policies / f"v{version - 2}", ignore_errors=True)
            rewards = [t.reward for t in batch.trajectories() if t.reward is not None]
            stats = stream.stats()
            print(
                f"step {version}  reward {sum(rewards) / len(rewards):.3f}  loss {result['loss']:+.4f}  "
                f"kept {result['kept']:.2f}  tokens {result['tokens']}  drift {result['drift']:.1e}  "
                f"staleness {stats.mean_staleness:.2f} (max {stats.max_staleness})  "
                f"wait {begun - asked:.2f} s  train {time.perf_counter() - begun:.2f} s",
                flush=True,
            )
            asked = time.perf_counter()


if __name__ == "__main__":
    main()
