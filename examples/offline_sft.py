"""Good answers of an archive or an export as a Hugging Face dataset for supervised fine-tuning.

    python examples/offline_sft.py s3://bucket/archive runs/sft --min-reward 1

Each sample becomes ``input_ids`` and ``labels`` (-100 where the policy sampled nothing), exactly the tokens that were
sampled: nothing is decoded and encoded again. Then: ``datasets.load_from_disk("runs/sft")``.
"""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (datasets is annotated in part only)

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset

from rollstream.trainers.trajectory_reading import read_trajectories

IGNORED = -100
"""What losses of transformers leave out."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Good answers of an archive as a dataset.")
    parser.add_argument("source", help="directory or URL of an archive or an export")
    parser.add_argument("target", help="directory of the dataset")
    parser.add_argument("--min-reward", type=float, default=1.0)
    parser.add_argument("--run-id", help="of this run only")
    return parser.parse_args()


def good_answers(source: str, min_reward: float, run_id: str | None) -> Iterator[dict[str, Any]]:
    for trajectory in read_trajectories(source, run_id=run_id, status=["completed"], min_reward=min_reward):
        for sample in trajectory.samples:
            if sample.is_trainable:
                labels = np.where(sample.response_mask, sample.response_ids, IGNORED)
                yield {
                    "trajectory_id": trajectory.trajectory_id,
                    "reward": trajectory.reward,
                    "input_ids": [*sample.prompt_ids.tolist(), *sample.response_ids.tolist()],
                    "labels": [*[IGNORED] * len(sample.prompt_ids), *labels.tolist()],
                }


def main() -> None:
    args = arguments()
    given = {"source": args.source, "min_reward": args.min_reward, "run_id": args.run_id}
    with tempfile.TemporaryDirectory() as cache:  # the archive grows: what was made of it earlier is no use
        dataset: Any = Dataset.from_generator(good_answers, gen_kwargs=given, cache_dir=cache)
        dataset.save_to_disk(args.target)
        print(f"{len(dataset)} samples in {args.target}")


if __name__ == "__main__":
    main()
