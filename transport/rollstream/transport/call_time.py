"""How long a tool call is waited for. Pure; knows no clock."""

from __future__ import annotations

from dataclasses import dataclass

AWAY_AFTER_S = 2.0
"""A send that takes longer has waited for a broker that was away."""


@dataclass
class CallTime:
    """The time of one call: it does not run while the broker is away, up to a limit.

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
            away_s = min(now - self.reached_at, self.put_off_left_s)
            self.put_off_left_s -= away_s
            self.deadline += away_s
            self.ends_at += away_s
        self.reached_at = now
