"""LoRA adapters in vLLM: loaded beside one another, chosen per request, dropped when nobody needs them.

Invariants: a request runs on one adapter from its first token to its last; the base weights are never touched; files
are checked before vLLM sees them, and what vLLM refuses leaves it as it was.
"""
# vLLM exports much as unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rollstream.rollout_workers.adapter_files import check_adapter_fits, write_null_adapter
from rollstream.rollout_workers.adapter_shelf import Adapter, AdapterShelf
from rollstream.rollout_workers.engine import PolicyRef
from rollstream.rollout_workers.weight_files import Shape
from rollstream.schemas.errors import EngineDeadError, PolicyFilesError

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

LOAD_DEADLINE_S = 300.0
CACHED_ADAPTERS = 16
"""vLLM keeps so many in main memory; one beyond that is read from its files again."""


class VllmAdapters:
    """The adapters of one engine; made by ``make``."""

    def __init__(
        self, llm: AsyncLLM, shapes: Mapping[str, Shape], max_rank: int, null: TemporaryDirectory[str] | None
    ) -> None:
        self.shelf = AdapterShelf(None if null is None else Path(null.name))
        self._llm = llm
        self._shapes = shapes
        self._max_rank = max_rank
        self._null = null
        self._loading = asyncio.Lock()

    @classmethod
    async def make(cls, llm: AsyncLLM, shapes: Mapping[str, Shape], max_rank: int, *, needs_null: bool) -> VllmAdapters:
        """``needs_null``: vLLM cannot run requests without an adapter beside others; on a CPU it lends them another's.

        Raises:
            PolicyFilesError: the model has no layer for an adapter.
        """
        null = TemporaryDirectory(prefix="rollstream-null-adapter-") if needs_null else None
        if null is not None:
            await asyncio.to_thread(write_null_adapter, Path(null.name), shapes)
        return cls(llm, shapes, max_rank, null)

    async def serve(self, path: Path | None, policy: PolicyRef) -> None:
        """New requests run on it. ``path`` None: the model as it came.

        Raises:
            PolicyFilesError: it does not fit.
            EngineDeadError: the engine has died.
        """
        async with self._loading:
            if path is not None:
                await self._load(path, policy)
            self.shelf.serving = policy
            await self._drop_idle()

    async def hold(self, path: Path, policy: PolicyRef) -> None:
        """Keep it until it is given back to the shelf. Raises as ``serve``."""
        async with self._loading:
            await self._load(path, policy)
            self.shelf.hold(policy)
            await self._drop_idle()

    def close(self) -> None:
        """Remove what was written."""
        if self._null is not None:
            self._null.cleanup()

    async def _load(self, path: Path, policy: PolicyRef) -> None:
        if self.shelf.has(policy):
            return
        await asyncio.to_thread(check_adapter_fits, path, self._shapes, self._max_rank)
        adapter = self.shelf.prepare(policy, path)
        try:
            async with asyncio.timeout(LOAD_DEADLINE_S):
                is_loaded = await self._llm.add_lora(_request(adapter, path))
        except Exception as error:
            self._raise_if_dead(error)
            raise PolicyFilesError(f"vLLM refuses the adapter {str(path)!r} of policy {policy}: {error}") from error
        if not is_loaded:
            raise PolicyFilesError(f"vLLM did not load the adapter {str(path)!r} of policy {policy}")
        self.shelf.put(adapter)

    async def _drop_idle(self) -> None:
        for adapter in self.shelf.pop_idle():
            try:
                await self._llm.remove_lora(adapter.number)
            except Exception as error:
                self._raise_if_dead(error)
                logger.warning("vLLM did not drop the adapter of policy %s: %s", adapter.policy, error)

    def _raise_if_dead(self, error: Exception) -> None:
        if self._llm.errored:
            raise EngineDeadError("vLLM's engine process has died; its messages are above") from error


def lora_request(adapter: Adapter) -> LoRARequest | None:
    """How vLLM is told which adapter a request runs on."""
    return None if adapter.path is None else _request(adapter, adapter.path)


def lora_arguments(max_rank: int | None, max_adapters: int) -> dict[str, Any]:
    """Arguments of ``AsyncEngineArgs``; none without a rank."""
    if max_rank is None:
        return {}
    return {
        "enable_lora": True,
        "max_lora_rank": max_rank,
        "max_loras": max_adapters,
        "max_cpu_loras": max(CACHED_ADAPTERS, max_adapters),
    }


def _request(adapter: Adapter, path: Path) -> LoRARequest:
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"{adapter.policy}#{adapter.number}", adapter.number, str(path))
