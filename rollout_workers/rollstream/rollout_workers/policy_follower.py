"""Keeps the engine on the newest policy, and gives pinned episodes theirs.

Duty: whenever `control` names a newer (lineage, version), fetch and check its files and load them between tokens; load
the policy a pinned episode asks for when its turn has come (`PolicyChoice`), or put its adapter beside the others.
Invariants: the newest version only goes forward; files that are missing, torn or corrupt leave the engine on what it
has and are said aloud, and looked at again a minute later; a worker that joins late loads the newest version before its
first episode; a pinned episode begins only while its weights serve, and fails at once if they cannot be had.
Crash: nothing to restore; the next start reads `control` to its end.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from msgspec import UNSET, UnsetType

from rollstream.rollout_workers import metrics
from rollstream.rollout_workers.effects import WorkerLeavingError
from rollstream.rollout_workers.engine import Engine, PolicyRef, check_kind
from rollstream.rollout_workers.pinned_adapters import PinnedAdapters
from rollstream.rollout_workers.policy_choice import PolicyChoice
from rollstream.rollout_workers.policy_sources import PolicySources, no_such_policy
from rollstream.schemas.control import HeldPolicy, PolicyVersion
from rollstream.schemas.errors import DataError, PolicyFilesError
from rollstream.schemas.tasks import PolicyPin

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 30.0
RETRY_REFUSED_S = 60.0
"""Storage that was away for a moment must not keep a worker on old weights until the next version."""
PIN_HOLD_S = 1200.0


class Announcements(Protocol):
    """What is known of `control`: a ``ControlFollower``."""

    def latest(self, message_type: type[PolicyVersion], /) -> tuple[PolicyVersion, int] | None:
        """The newest policy and its offset."""
        ...

    async def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until something has changed; False after ``timeout_s``."""
        ...


class PolicyFollower:
    """``catch_up`` once before the first episode, ``run`` for as long as the worker lives.

    Args:
        engine: nobody else changes its weights.
        control: what trainers announce.
        cache: where files from remote storage are kept.
        follows: whether announcements count; pins always do.
        pin_hold_s: how long pinned episodes may keep other weights waiting.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        engine: Engine,
        control: Announcements,
        cache: Path,
        *,
        follows: bool = True,
        pin_hold_s: float = PIN_HOLD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._control = control
        self._follows = follows
        self._clock = clock
        self._sources = PolicySources(cache)
        self._choice = PolicyChoice(loaded=engine.policy, newest=engine.policy, hold_s=pin_hold_s)
        self._adapters = PinnedAdapters(engine, self._sources)
        self._numbers = itertools.count()
        self._begins: dict[int, asyncio.Future[None]] = {}
        self._news = asyncio.Event()
        self.look_again_at_s: float | None = None
        """When time alone changes what is to serve."""
        self._is_leaving = False
        self._proven = engine.policy
        """The newest that could be loaded; it serves again after a phase, whatever came meanwhile and was broken."""
        self._refused: PolicyRef | None = None
        self._retry_at = 0.0
        self.loaded = 0
        self.refused = 0
        self.last_pause_s = 0.0

    @property
    def waiting(self) -> int:
        """Pinned episodes that wait for their weights."""
        return self._choice.waiting

    @property
    def held(self) -> list[HeldPolicy]:
        """Policies whose files are needed here beside those of ``engine.policy``."""
        return self._sources.held({*self._engine.held_policies, self._proven} - {self._engine.policy})

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self._follows:
                group.create_task(self._listen())
            while True:
                await self.catch_up()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._patience_s()):
                        await self._news.wait()
                self._news.clear()

    async def catch_up(self) -> None:
        """Load what is to serve now, and let the episodes begin that have waited for it. Bad files change nothing.

        Raises:
            EngineError: the engine died while loading; the worker has to be restarted.
        """
        while True:
            self._hear()
            decision = self._choice.decide(self._clock())
            self.look_again_at_s = decision.look_again_at_s
            for ticket in decision.admitted:
                if not self._begins[ticket].done():
                    self._begins[ticket].set_result(None)
            if decision.ousted:
                logger.warning(
                    "%d episodes pinned to policy %s begin anew: others have waited for pin_hold_s = %g s",
                    len(decision.ousted), self._engine.policy, self._choice.hold_s,
                )  # fmt: skip
            if decision.load is None:
                return
            await self._load(decision.load)

    @asynccontextmanager
    async def serving(self, pin: PolicyPin | UnsetType) -> AsyncGenerator[None]:
        """Within the block an episode may draw tokens. A pinned one waits for its weights, for a bounded time.

        Raises:
            DataError: the pinned policy cannot be had: its files are gone or do not fit, or this engine takes none.
            WorkerLeavingError: the worker drains.
            EngineError: the engine died while loading.
        """
        if pin is UNSET:
            self._choice.others += 1
            try:
                yield
            finally:
                self._choice.others -= 1
                if self._choice.waiting:
                    self._news.set()
            return
        policy = PolicyRef(pin.lineage, pin.version)
        with self._sources.pinned(pin):
            try:
                self._sources.check_pin(pin)
                check_kind(pin.kind, policy, serves_adapters=self._engine.serves_adapters)
            except PolicyFilesError as error:
                raise DataError(f"the task is pinned to what this worker cannot serve: {error}") from error
            taken = self._adapters.held(policy) if self._engine.serves_adapters else self._turn(policy)
            async with taken:
                yield

    def leave(self) -> None:
        """The worker drains: nobody waits any more."""
        self._is_leaving = True
        for begin in self._begins.values():
            if not begin.done():
                begin.set_exception(WorkerLeavingError("an episode that waits for its policy is not begun here"))

    @asynccontextmanager
    async def _turn(self, policy: PolicyRef) -> AsyncGenerator[None]:
        ticket = next(self._numbers)
        begin = self._begins[ticket] = asyncio.get_running_loop().create_future()
        try:
            if self._is_leaving:
                raise WorkerLeavingError(f"an episode pinned to policy {policy} is not begun here")
            self._choice.ask(ticket, policy)
            self._news.set()
            await begin
            yield
        finally:
            if begin.done() and not begin.cancelled():
                begin.exception()  # or a failure that nobody has waited for is logged
            del self._begins[ticket]
            self._choice.leave(ticket)
            self._news.set()

    async def _listen(self) -> None:
        while True:
            await self._control.wait_for_change(timeout_s=LOOK_AGAIN_S)
            self._news.set()

    def _patience_s(self) -> float:
        if self.look_again_at_s is None:
            return LOOK_AGAIN_S
        return min(LOOK_AGAIN_S, max(0.0, self.look_again_at_s - self._clock()))

    def _hear(self) -> None:
        latest = self._control.latest(PolicyVersion) if self._follows else None
        if latest is None:
            return
        announced, _ = latest
        policy = PolicyRef(announced.lineage, announced.version)
        if policy < self._choice.newest or (policy == self._refused and self._clock() < self._retry_at):
            return
        self._sources.announced(announced)
        needed = {policy, self._proven, self._choice.newest, self._engine.policy, *self._engine.held_policies}
        self._sources.forget_all_but(needed)
        if policy > self._choice.newest:
            self._choice.announce(policy)

    async def _load(self, policy: PolicyRef) -> None:
        try:
            source = self._sources.of(policy)
            path = await asyncio.to_thread(self._sources.fetch, source)
            started = time.monotonic()
            await self._engine.update_weights(path, policy, kind=source.kind)
        except PolicyFilesError as error:
            self._refuse(policy, error)
            return
        self.last_pause_s = time.monotonic() - started
        self.loaded += 1
        self._choice.has_loaded(policy, self._clock())
        if policy == self._choice.newest:
            self._proven = policy
        metrics.POLICY_VERSION.set(policy.version)
        metrics.POLICY_PAUSE_SECONDS.observe(self.last_pause_s)
        logger.info("policy %s loaded in %.3f s", policy, self.last_pause_s)

    def _refuse(self, policy: PolicyRef, error: PolicyFilesError) -> None:
        self.refused += 1
        logger.error("policy %s is refused, the engine stays on %s: %s", policy, self._engine.policy, error)
        for ticket in self._choice.refuse_pin(policy):
            if not self._begins[ticket].done():
                self._begins[ticket].set_exception(no_such_policy(policy, error))
        if policy != self._choice.newest:
            return
        retry_at = self._clock() + RETRY_REFUSED_S
        if policy == self._proven:
            self._choice.refuse_newest(retry_at)
        else:
            self._refused, self._retry_at = policy, retry_at
            self._choice.announce(self._proven)
