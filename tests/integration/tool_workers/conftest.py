"""Makes the tables of payloads in this folder importable, and what they need."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from grading_desk import desk

__all__ = ["desk"]
