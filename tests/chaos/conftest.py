"""The modules here are a program, `run.py`: they import one another from their folder, and so do the tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
