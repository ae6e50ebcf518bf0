"""Figures over time: rates, recovery, quantiles. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

RECOVERED_SHARE = 0.8
RATE_WINDOW_S = 5.0


def rate(ended: Sequence[float], start: float, stop: float) -> float:
    """Trajectories per second in a span of time."""
    return sum(start <= at < stop for at in ended) / max(1e-9, stop - start)


def recovery_s(ended: Sequence[float], before: float, healed: float, stop: float) -> float | None:
    """Seconds from ``healed`` to the first window of time with nearly the rate of before; None: there is none."""
    for start in (healed, *(at for at in ended if at >= healed)):
        if start + RATE_WINDOW_S > stop:
            break
        if rate(ended, start, start + RATE_WINDOW_S) >= RECOVERED_SHARE * before:
            return round(start - healed, 2)
    return None


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of the values do not exceed; None of nothing."""
    if not values:
        return None
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 2)
