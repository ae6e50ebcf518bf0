"""Makes the simulator importable as the top-level package ``simulator``, as it is for ``campaign.py``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def nothing_is_left_of_a_simulation() -> Iterator[None]:
    from simulator.virtual_loop import hushed

    with hushed():
        yield
