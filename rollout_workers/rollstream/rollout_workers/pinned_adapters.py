"""Adapters of pinned episodes: beside the newest one in the engine, for as long as an episode needs them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from rollstream.rollout_workers.engine import AS_IT_CAME, Engine, PolicyRef
from rollstream.rollout_workers.policy_sources import PolicySources, no_such_policy
from rollstream.schemas.errors import PolicyFilesError


class PinnedAdapters:
    """Each is fetched and loaded once, by the first episode that needs it."""

    def __init__(self, engine: Engine, sources: PolicySources) -> None:
        self._engine = engine
        self._sources = sources
        self._uses: Counter[PolicyRef] = Counter()
        self._loading = asyncio.Lock()

    @asynccontextmanager
    async def held(self, policy: PolicyRef) -> AsyncGenerator[None]:
        """Within the block requests may be pinned to it.

        Raises:
            DataError: its files are gone or do not fit.
            EngineError: the engine has died.
        """
        if policy == AS_IT_CAME:
            yield
            return
        async with self._loading:
            if not self._uses[policy]:
                await self._load(policy)
            self._uses[policy] += 1
        try:
            yield
        finally:
            self._uses[policy] -= 1
            if not self._uses[policy]:
                del self._uses[policy]
                self._engine.release_adapter(policy)

    async def _load(self, policy: PolicyRef) -> None:
        try:
            path = await asyncio.to_thread(self._sources.fetch, self._sources.of(policy))
            assert path is not None, "only the model as it came has no files"
            await self._engine.hold_adapter(path, policy)
        except PolicyFilesError as error:
            raise no_such_policy(policy, error) from error
