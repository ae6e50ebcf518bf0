"""Whether the tail was read a moment ago, or this process was frozen meanwhile and others may have gone on. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


class Currency:
    """What has been read is current as long as the reader has never paused for longer than ``lease_s``.

    After a pause everything must be read up to the ends of the logs as they are then.
    """

    def __init__(self, lease_s: float, *, monotonic: Callable[[], float] | None = None) -> None:
        self._lease_s = lease_s
        self._monotonic = monotonic or (lambda: time.monotonic())
        self._read_at = self._monotonic()
        self._must_reach: Mapping[int, int] | None = None
        self._has_paused = False

    @property
    def is_held(self) -> bool:
        """Whether what has been read may be acted upon."""
        return not self._has_paused and self._monotonic() - self._read_at <= self._lease_s

    def asks_for_ends(self) -> bool:
        """Whether the reader has paused and does not know yet how far it must read. The reader asks after each read."""
        self._notice_a_pause()
        return self._has_paused and self._must_reach is None

    def must_reach(self, ends: Mapping[int, int]) -> None:
        """The ends of the logs, asked for after the pause."""
        self._must_reach = ends

    def read_to(self, positions: Mapping[int, int]) -> None:
        """The reader has just read, and is here."""
        self._notice_a_pause()
        ends = self._must_reach
        if ends is not None and all(position >= ends.get(partition, 0) for partition, position in positions.items()):
            self._has_paused, self._must_reach = False, None

    def _notice_a_pause(self) -> None:
        now = self._monotonic()
        if now - self._read_at > self._lease_s:
            self._has_paused, self._must_reach = True, None
        self._read_at = now
