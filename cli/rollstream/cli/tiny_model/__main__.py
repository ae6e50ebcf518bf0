"""``python -m rollstream.cli.tiny_model OUT --seed N``: train and save, in a process of its own."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    """Train into a new or empty directory; one line of progress at a time on standard output."""
    parser = argparse.ArgumentParser(prog="python -m rollstream.cli.tiny_model", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print("loading torch and transformers", flush=True)
    from rollstream.cli.tiny_model.training import train

    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments.out, seed=arguments.seed, report=lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
