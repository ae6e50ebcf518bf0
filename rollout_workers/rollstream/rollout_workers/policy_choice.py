"""Whose weights an engine serves that holds one policy at a time: the newest, or those of pinned episodes. Pure.

Pinned episodes of one policy run beside one another and share a *phase*. While a phase runs, newer weights and other
pins wait, at most ``hold_s``: for the first half of that time further episodes of the phase's policy may join, in the
second half those that run may end, then they are ousted. After a phase the newest weights are served again, for as long
as the phase has kept them away if other episodes run that want them, and then the pin that has waited longest has its
turn. So nobody waits for ever: with ``k`` pins waiting, a pinned episode begins after at most ``2 k hold_s`` and the
time it takes to load.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rollstream.rollout_workers.engine import PolicyRef


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now.

    Attributes:
        admitted: episodes that may begin.
        ousted: episodes whose weights are taken away now.
        load: what to load; None: nothing.
        look_again_at_s: when time alone changes the decision; None: only news does.
    """

    admitted: tuple[int, ...] = ()
    ousted: tuple[int, ...] = ()
    load: PolicyRef | None = None
    look_again_at_s: float | None = None


@dataclass
class PolicyChoice:
    """Told what happens, it says what to do. Times are seconds of one monotonic clock.

    Attributes:
        loaded: what the engine serves.
        newest: what every episode without a pin wants.
        hold_s: how long a phase may keep others waiting.
        others: episodes without a pin that run.
    """

    loaded: PolicyRef
    newest: PolicyRef
    hold_s: float
    others: int = 0
    _waiting: dict[int, PolicyRef] = field(default_factory=dict[int, PolicyRef])
    _running: set[int] = field(default_factory=set[int])
    _newest_from_s: float = 0.0
    _contended_since_s: float | None = None
    _displaced_at_s: float | None = None
    _rests_until_s: float = 0.0

    @property
    def waiting(self) -> int:
        """Pinned episodes that wait for their weights."""
        return len(self._waiting)

    def ask(self, ticket: int, pin: PolicyRef) -> None:
        """An episode wants to begin that only ``pin`` may draw. ``ticket`` is its own and never used again."""
        self._waiting[ticket] = pin

    def leave(self, ticket: int) -> None:
        """It has ended or given up, wherever it was."""
        self._waiting.pop(ticket, None)
        self._running.discard(ticket)

    def has_loaded(self, policy: PolicyRef, now_s: float) -> None:
        """The engine serves it now."""
        self.loaded = policy
        self._contended_since_s = None
        if policy != self.newest:
            self._displaced_at_s = now_s if self._displaced_at_s is None else self._displaced_at_s
        elif self._displaced_at_s is not None:
            self._rests_until_s = now_s + min(now_s - self._displaced_at_s, self.hold_s)
            self._displaced_at_s = None

    def refuse_newest(self, until_s: float) -> None:
        """It cannot be loaded; it is not tried again before."""
        self._newest_from_s = until_s

    def refuse_pin(self, pin: PolicyRef) -> tuple[int, ...]:
        """It cannot be loaded: the episodes that wait for it, which no longer do."""
        refused = tuple(ticket for ticket, wanted in self._waiting.items() if wanted == pin)
        for ticket in refused:
            del self._waiting[ticket]
        return refused

    def announce(self, newest: PolicyRef) -> None:
        """A newer policy is there."""
        self.newest, self._newest_from_s = newest, 0.0

    def decide(self, now_s: float) -> Decision:
        """What to do now. Afterwards the admitted run, the ousted are gone, and ``load`` is being loaded."""
        wants_newest = self.newest != self.loaded and now_s >= self._newest_from_s
        is_contended = wants_newest or self._first_other_pin() is not None
        is_resting = self.newest == self.loaded and self.others > 0 and now_s < self._rests_until_s
        if not is_contended or is_resting:
            self._contended_since_s = None
            return Decision(admitted=self._admit(), look_again_at_s=self._rests_until_s if is_contended else None)
        since_s = now_s if self._contended_since_s is None else self._contended_since_s
        self._contended_since_s = since_s
        admitted = self._admit() if now_s < since_s + self.hold_s / 2 else ()
        if self._running and now_s < since_s + self.hold_s:
            return Decision(admitted=admitted, look_again_at_s=since_s + self.hold_s)
        ousted = tuple(sorted(self._running))
        self._running.clear()
        return Decision(ousted=ousted, load=self._next_turn(wants_newest=wants_newest))

    def _next_turn(self, *, wants_newest: bool) -> PolicyRef:
        pin = self._first_other_pin()
        if wants_newest and (self.others or pin is None):
            return self.newest
        assert pin is not None, "contended means that somebody waits"
        return pin

    def _first_other_pin(self) -> PolicyRef | None:
        return next((pin for pin in self._waiting.values() if pin != self.loaded), None)

    def _admit(self) -> tuple[int, ...]:
        admitted = tuple(ticket for ticket, pin in self._waiting.items() if pin == self.loaded)
        for ticket in admitted:
            del self._waiting[ticket]
        self._running.update(admitted)
        return admitted
