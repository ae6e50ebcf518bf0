"""Times as people type them."""

from __future__ import annotations

import re
import time
from datetime import datetime

from rollstream.schemas.errors import SettingsError

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def point_in_time(text: str | None, option: str) -> float | None:
    """Unix seconds of ``15m`` (ago) or an ISO time (local, unless it names its zone).

    Raises:
        SettingsError: ``option`` was given something else.
    """
    if text is None:
        return None
    if matched := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return time.time() - float(matched[1]) * UNITS_S[matched[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError as error:
        raise SettingsError(f"{option} {text!r}: expected 90s, 15m, 2h, 1d or an ISO time") from error
