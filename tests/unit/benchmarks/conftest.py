"""The modules of `benchmarks/` are scripts: they import one another from their folder."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
sys.path += [str(ROOT), str(ROOT / "benchmarks")]
