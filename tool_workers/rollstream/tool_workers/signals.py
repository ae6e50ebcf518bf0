"""What a program's end tells about what it was after. A rising rate of these is the earliest sign of reward hacking.

Pure. Numbers only, few of them, under names that no model chooses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from rollstream.tool_workers.sandbox.replies import Execution

MAX_SIGNALS = 32
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
INTERNET_SOCKET = "internet_socket"
MOST = 1e9


def signals_of(execution: Execution) -> dict[str, float]:
    """Refused system calls, attempts at the network, and the limit that ended the program."""
    found: dict[str, float] = {}
    refused = 0
    for name, count in execution.denied.items():
        if name == INTERNET_SOCKET:
            found["network_attempts"] = float(count)
        else:
            found[f"denied_{name}"] = float(count)
            refused += count
    if refused:
        found["denied"] = float(refused)
    if execution.cause is not None:
        found[f"killed_{execution.cause}"] = 1.0
    return bounded(found)


def bounded(signals: Mapping[str, float]) -> dict[str, float]:
    """At most 32, finite, under plain names; the totals are kept first."""
    kept = {name: min(value, MOST) for name, value in signals.items() if NAME.fullmatch(name) and value >= 0}
    first = sorted(
        kept, key=lambda name: (name not in ("denied", "network_attempts"), name.startswith("denied_"), name)
    )
    return {name: kept[name] for name in first[:MAX_SIGNALS]}
