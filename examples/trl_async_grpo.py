"""TRL's AsyncGRPOTrainer on the trajectory stream. Needs a GPU, and `pip install "trl==1.16.0"`.

    python examples/trl_async_grpo.py --bootstrap 127.0.0.1:9092 --model MODEL --run-dir runs/trl --steps 100

Run again with the same --run-dir, it goes on from its newest checkpoint. With several GPUs start it with
`accelerate launch`; only the main process reads the stream.
"""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (datasets and trl are annotated in part only)

from __future__ import annotations

import argparse
import os
from pathlib import Path

from datasets import Dataset
from trl.experimental.async_grpo.async_grpo_config import AsyncGRPOConfig
from trl.experimental.async_grpo.async_grpo_trainer import AsyncGRPOTrainer

from rollstream.trainers.adapters.trl import TrlStream, last_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description="TRL on the trajectory stream.")
    parser.add_argument("--bootstrap", default=os.environ.get("ROLLSTREAM_KAFKA__BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--prefix", default=os.environ.get("ROLLSTREAM_KAFKA__PREFIX", "rollstream."))
    parser.add_argument("--model", required=True, help="folder or name of the model that rollouts began with")
    parser.add_argument("--run-dir", type=Path, required=True, help="gets policies/ and TRL's checkpoints")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--groups-per-batch", type=int, default=16)
    parser.add_argument("--token-budget", type=int, default=16384, help="tokens in one forward pass")
    parser.add_argument("--micro-batches", type=int, default=8, help="forward passes in one optimizer step")
    args = parser.parse_args()

    source = TrlStream(
        args.bootstrap,
        prefix=args.prefix,
        policies=args.run_dir / "policies",
        groups_per_batch=args.groups_per_batch,
        drop_zero_variance=True,
    )
    checkpoint = last_checkpoint(args.run_dir)
    if checkpoint is not None:
        source.resume_from(checkpoint)
    trainer = AsyncGRPOTrainer(
        args.model,
        args=AsyncGRPOConfig(
            output_dir=str(args.run_dir),
            max_steps=args.steps,
            token_budget=args.token_budget,
            gradient_accumulation_steps=args.micro_batches,
            temperature=1.0,
            save_steps=10,
            save_total_limit=3,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["prompts are the producer's"]}),
        rollout_worker=source.rollout_worker,
        weight_transfer=source.weight_transfer,
        callbacks=[source.callback],
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


if __name__ == "__main__":
    main()
