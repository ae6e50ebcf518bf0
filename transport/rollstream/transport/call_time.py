"""How long a tool call is waited for. Pure; knows no clock."""

from __future__ import annotations

from dataclasses import dataclass

AWAY_AFTER_S = 2.0
"""A send that takes longer has waited for a broker that was away."""


@dataclass
class CallTime:
    """The time of one call: it does not run while the broker is away or the call waits for its turn, up to a limit.

    All moments but ``deadline`` are of one monotonic clock.
    """

    deadline: float
    """Unix seconds: until then a tool worker begins with the call."""
    ends_at: float
    """Until then the caller waits for the answer."""
    reached_at: float
    """When the broker was there for certain."""
    put_off_left_s: float
    """By how much more the time may be put off."""
    allowed_s: float
    """From when the call begins: what it was given at first."""
    was_busy: bool = False

    def left_s(self, now: float) -> float:
        """Seconds left to wait for the answer; below 0: none."""
        return self.ends_at - now

    def send_limit_s(self, now: float) -> float:
        """How long a send that begins now may wait for the broker."""
        return max(0.0, self.left_s(now) + self.put_off_left_s)

    def sent(self, began: float, now: float) -> None:
        """A send has been acknowledged now.

        If it had to wait, the broker was away since it was last reached, and the call's time is put off by that.
        """
        if now - began > AWAY_AFTER_S:
            self._put_off(now - self.reached_at)
        self.reached_at = now

    def busy(self, now: float) -> None:
        """A tool worker has no place for the call yet: it has all its time again."""
        self.was_busy = True
        self._put_off(max(0.0, now + self.allowed_s - self.ends_at))

    def _put_off(self, seconds: float) -> None:
        seconds = min(seconds, self.put_off_left_s)
        self.put_off_left_s -= seconds
        self.deadline += seconds
        self.ends_at += seconds
