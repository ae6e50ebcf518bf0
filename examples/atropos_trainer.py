"""A trainer that speaks Atropos' HTTP API, on one page, fed by RollStream.

    rollstream atropos serve --port 8000 --checkpoints runs/mine
    python examples/atropos_trainer.py --url http://127.0.0.1:8000 --model MODEL --checkpoints runs/mine --steps 30

The server publishes each step_<n> in --checkpoints, so rollout workers follow. The trainer knows nothing of Kafka, and
would train from Atropos' own server in the same way. Run again, it goes on from its newest
checkpoint and trains on no batch twice.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# (torch and transformers are annotated in part only)

from __future__ import annotations

import argparse
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

CLIP_LOW, CLIP_HIGH = 0.8, 1.2
IGNORED = -100
POLL_S = 0.5
KEPT_CHECKPOINTS = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A trainer that speaks Atropos' HTTP API.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="folder or name of the model that rollouts began with")
    parser.add_argument("--checkpoints", type=Path, required=True, help="gets step_<n>")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64, help="sequences of a step: a multiple of the group size")
    parser.add_argument("--max-token-len", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-4)
    return parser.parse_args()


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def next_batch(url: str) -> list[dict[str, Any]]:
    """Asking for the next batch says that the one before is trained on."""
    while (batch := ask(f"{url}/batch")["batch"]) is None:
        time.sleep(POLL_S)
    return batch


def advantages(scores: list[float]) -> list[float]:
    values = torch.tensor(scores)
    return ((values - values.mean()) / (values.std(correction=0) + 1e-6)).tolist()


def rectangle(rows: list[list[Any]], padding: float, dtype: torch.dtype) -> torch.Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([row + [padding] * (length - len(row)) for row in rows], dtype=dtype)


def loss_of(model: Any, batch: list[dict[str, Any]]) -> torch.Tensor:
    tokens = rectangle([row for group in batch for row in group["tokens"]], 0, torch.long)
    labels = rectangle([row for group in batch for row in group["masks"]], IGNORED, torch.long)[:, 1:]
    sampled_at = rectangle([row for group in batch for row in group["inference_logprobs"]], 1.0, torch.float)[:, 1:]
    advantage = torch.tensor([value for group in batch for value in advantages(group["scores"])])[:, None]
    temperature = torch.tensor([facts["temperature"] for group in batch for facts in group["overrides"]])[:, None, None]

    logprobs = torch.log_softmax(model(tokens).logits[:, :-1] / temperature, -1)
    is_trained = labels != IGNORED
    now = logprobs.gather(-1, labels.clamp(min=0)[:, :, None])[:, :, 0]
    ratio = torch.exp(torch.where(is_trained, now - sampled_at, 0.0))
    gain = torch.minimum(ratio * advantage, ratio.clamp(CLIP_LOW, CLIP_HIGH) * advantage)
    return -(gain * is_trained).sum() / is_trained.sum()


def saved_steps(checkpoints: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*[0-9]"))


def save(model: Any, checkpoints: Path, step: int) -> None:
    """Under its name it is whole: nobody loads half a checkpoint."""
    part = checkpoints / f"step_{step}.part"
    model.save_pretrained(part)
    part.rename(checkpoints / f"step_{step}")
    for old in saved_steps(checkpoints)[:-KEPT_CHECKPOINTS]:
        for file in (checkpoints / f"step_{old}").iterdir():
            file.unlink()
        (checkpoints / f"step_{old}").rmdir()


def main() -> None:
    args = arguments()
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    done = max(saved_steps(args.checkpoints), default=0)
    model = AutoModelForCausalLM.from_pretrained(args.checkpoints / f"step_{done}" if done else args.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    registration = {
        "wandb_group": "rollstream",
        "wandb_project": "rollstream",
        "batch_size": args.batch_size,
        "max_token_len": args.max_token_len,
        "checkpoint_dir": str(args.checkpoints),
        "save_checkpoint_interval": 1,
        "starting_step": done,
        "num_steps": args.steps,
    }
    ask(f"{args.url}/register", registration)
    for step in range(done + 1, args.steps + 1):
        batch = next_batch(args.url)
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        save(model, args.checkpoints, step)
        scores = [score for group in batch for score in group["scores"]]
        print(f"step {step}  reward {sum(scores) / len(scores):.3f}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
