"""Many simulated scenarios, each a function of its seed.

python tests/simulation/campaign.py 20000 [--first N] [--workers 2] [--profile NAME]
python tests/simulation/campaign.py show SEED [--profile NAME]
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from simulator.campaigning import Figures, campaign
from simulator.profiles import PROFILES
from simulator.world import run_seed

PROGRESS_EVERY_S = 10.0
MOST_TOLD = 20
"""Violations that are printed; all are counted."""


def main() -> int:
    """Exit status 1: a promise was broken."""
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of strings is part of what a seed decides
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help="how many seeds, or: show SEED")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="default")
    arguments = parser.parse_args()
    profile = PROFILES[arguments.profile]
    if arguments.what[0] == "show":
        outcome = run_seed(int(arguments.what[1]), profile, trace=print)
        print(outcome)
        return int(outcome.violation is not None)
    seeds = range(arguments.first, arguments.first + int(arguments.what[0]))
    started = told = time.perf_counter()
    figures = Figures()
    for outcome in campaign(seeds, arguments.profile, workers=arguments.workers):
        figures.add(outcome)
        if outcome.violation is not None and len(figures.violations) <= MOST_TOLD:
            print(f"seed {outcome.seed}: {outcome.violation}", flush=True)
        if time.perf_counter() - told > PROGRESS_EVERY_S:
            told = time.perf_counter()
            print(figures.told(told - started), flush=True)
    print(figures.told(time.perf_counter() - started))
    return int(bool(figures.violations))


if __name__ == "__main__":
    sys.exit(main())
