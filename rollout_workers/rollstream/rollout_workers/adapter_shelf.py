"""Which LoRA adapters an engine has, and which of them somebody still needs. Pure.

An adapter is needed while it serves new requests, while a request runs on it, and while it is held for pinned episodes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from rollstream.rollout_workers.engine import AS_IT_CAME, PolicyRef, policy_changed


@dataclass
class Adapter:
    """One that is in the engine.

    Attributes:
        policy: whose it is.
        number: unique within the engine and never used again; at least 1.
        path: where its files are; None: the model without an adapter.
        uses: requests that run on it, and holds.
    """

    policy: PolicyRef
    number: int
    path: Path | None
    uses: int = 0


class AdapterShelf:
    """``base``: the adapter that changes nothing, for engines that need one to run the model as it came."""

    def __init__(self, base: Path | None = None) -> None:
        self._numbers = itertools.count(1)
        self._adapters: dict[PolicyRef, Adapter] = {}
        self.serving = AS_IT_CAME
        """What new requests run on, unless they are pinned."""
        self.put(self.prepare(AS_IT_CAME, base))

    def prepare(self, policy: PolicyRef, path: Path | None) -> Adapter:
        """An adapter that is about to be loaded: nobody can take it yet."""
        return Adapter(policy, next(self._numbers), path)

    def put(self, adapter: Adapter) -> None:
        """It is loaded; one that is there already stays what it is."""
        self._adapters.setdefault(adapter.policy, adapter)

    def has(self, policy: PolicyRef) -> bool:
        """Whether it is in the engine."""
        return policy in self._adapters

    def take(self, policy: PolicyRef | None, request_id: str) -> Adapter:
        """For a request, until it is given back. None: whatever serves.

        Raises:
            PolicyChangedError: it is not in the engine.
        """
        adapter = self._adapters.get(self.serving if policy is None else policy)
        if adapter is None:
            assert policy is not None
            raise policy_changed(policy, self.serving, request_id)
        adapter.uses += 1
        return adapter

    def hold(self, policy: PolicyRef) -> None:
        """Somebody else needs it from now on."""
        self._adapters[policy].uses += 1

    def give_back(self, policy: PolicyRef) -> None:
        """The inverse of ``take`` and of ``hold``; unknown ones are ignored."""
        adapter = self._adapters.get(policy)
        if adapter is not None:
            adapter.uses = max(0, adapter.uses - 1)

    def in_use(self) -> frozenset[PolicyRef]:
        """Those whose files have to stay, beside what serves."""
        return frozenset(policy for policy, adapter in self._adapters.items() if adapter.uses) - {AS_IT_CAME}

    def pop_idle(self) -> list[Adapter]:
        """Those nobody needs any more; they are no longer on the shelf."""
        needed = {AS_IT_CAME, self.serving}
        idle = [adapter for policy, adapter in self._adapters.items() if not adapter.uses and policy not in needed]
        for adapter in idle:
            del self._adapters[adapter.policy]
        return idle
