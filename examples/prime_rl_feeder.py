"""Feeds prime-rl's trainer from the trajectory stream, in place of its orchestrator.

    python examples/prime_rl_feeder.py --bootstrap 127.0.0.1:9092 --output-dir outputs/run --model-dir MODEL --ranks 8

Start it beside prime-rl's trainer, whose output_dir it shares. Started again it goes on with the next step.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from pathlib import Path

from rollstream.trainers import TrainerSettings
from rollstream.trainers.adapters.prime_rl import PrimeRlOptions, feed_prime_rl
from rollstream.transport.settings import KafkaSettings


def main() -> None:
    parser = argparse.ArgumentParser(description="prime-rl on the trajectory stream.")
    parser.add_argument("--bootstrap", default=os.environ.get("ROLLSTREAM_KAFKA__BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--prefix", default=os.environ.get("ROLLSTREAM_KAFKA__PREFIX", "rollstream."))
    parser.add_argument("--output-dir", type=Path, required=True, help="prime-rl's output_dir")
    parser.add_argument("--model-dir", type=Path, required=True, help="folder of the model that training began with")
    parser.add_argument("--ranks", type=int, default=1, help="data-parallel ranks of the trainer")
    parser.add_argument("--seq-len", type=int, default=4096, help="the trainer's model.seq_len")
    parser.add_argument("--groups-per-step", type=int, default=16)
    parser.add_argument("--resume-step", type=int, help="the step of the checkpoint that the trainer resumes from")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    options = PrimeRlOptions(
        output_dir=args.output_dir,
        model_dir=args.model_dir,
        policies=args.output_dir / "policies",
        ranks=args.ranks,
        seq_len=args.seq_len,
        resume_step=args.resume_step,
    )
    kafka = KafkaSettings(bootstrap=args.bootstrap, prefix=args.prefix)
    trainer = TrainerSettings(groups_per_batch=args.groups_per_step, drop_zero_variance=True)
    print(f"fed {asyncio.run(feed_prime_rl(kafka, trainer, options))} steps")


if __name__ == "__main__":
    main()
