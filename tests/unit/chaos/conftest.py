"""The modules of `tests/chaos/` are scripts: they import one another from their folder."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "chaos"))
