"""Makes the tables of payloads in this folder, and the older ones beside it, importable."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]
