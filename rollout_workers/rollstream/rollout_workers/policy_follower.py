"""Keeps the engine on the newest policy.

Duty: whenever `control` names a newer (lineage, version), fetch and check its files and load them between tokens.
Invariants: versions only go forward; files that are missing, torn or corrupt leave the engine on what it has and are
said aloud, and looked at again a minute later; a worker that joins late loads the newest version before its first
episode.
Crash: nothing to restore; the next start reads `control` to its end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rollstream.rollout_workers import metrics
from rollstream.rollout_workers.engine import Engine, PolicyRef
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import PolicyFilesError
from rollstream.transport.policy_files import fetch_policy

logger = logging.getLogger(__name__)

LOOK_AGAIN_S = 30.0
RETRY_REFUSED_S = 60.0
"""Storage that was away for a moment must not keep a worker on old weights until the next version."""


class Announcements(Protocol):
    """What is known of `control`: a ``ControlFollower``."""

    def latest(self, message_type: type[PolicyVersion], /) -> tuple[PolicyVersion, int] | None:
        """The newest policy and its offset."""
        ...

    async def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until something has changed; False after ``timeout_s``."""
        ...


class PolicyFollower:
    """``catch_up`` once before the first episode, ``run`` for as long as the worker lives."""

    def __init__(
        self, engine: Engine, control: Announcements, cache: Path, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._control = control
        self._cache = cache
        self._clock = clock
        self._refused: PolicyRef | None = None
        self._retry_at = 0.0
        self.loaded = 0
        self.refused = 0
        self.last_pause_s = 0.0

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self.catch_up()
            await self._control.wait_for_change(timeout_s=LOOK_AGAIN_S)

    async def catch_up(self) -> None:
        """Load the newest version if the engine does not have it. Bad files change nothing.

        Raises:
            EngineError: the engine died while loading; the worker has to be restarted.
        """
        latest = self._control.latest(PolicyVersion)
        if latest is None:
            return
        announced, _ = latest
        policy = PolicyRef(announced.lineage, announced.version)
        if policy <= self._engine.policy or (policy == self._refused and self._clock() < self._retry_at):
            return
        try:
            path = await asyncio.to_thread(fetch_policy, announced.uri, announced.manifest_sha256, self._cache)
            started = time.monotonic()
            await self._engine.update_weights(path, policy)
        except PolicyFilesError as error:
            self._refused, self._retry_at = policy, self._clock() + RETRY_REFUSED_S
            self.refused += 1
            logger.error("policy %s is refused, the engine stays on %s: %s", policy, self._engine.policy, error)
            return
        self.last_pause_s = time.monotonic() - started
        self.loaded += 1
        metrics.POLICY_VERSION.set(policy.version)
        metrics.POLICY_PAUSE_SECONDS.observe(self.last_pause_s)
        logger.info("policy %s loaded in %.3f s", policy, self.last_pause_s)
