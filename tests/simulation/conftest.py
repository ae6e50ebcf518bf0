"""Makes the simulator importable as the top-level package ``simulator``, as it is for ``campaign.py``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
