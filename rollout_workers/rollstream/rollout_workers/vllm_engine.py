"""vLLM in the worker's process (its core is a child process of it).

Invariants: token ids in and out, nothing is decoded; every request has an id of its own inside vLLM, so a repeated
request id cannot mix two generations; a token is labelled with the weights that drew it; files are checked before they
touch the engine. Started with ``max_lora_rank`` it serves LoRA adapters on a model that never changes, else whole
models, one at a time. An update that fails half-way leaves weights nobody can name: the engine counts as dead from then
on, and what it still returns is refused. Crash: nothing is kept; the worker starts a new engine.
"""
# vLLM exports much as unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollstream.rollout_workers.engine import (
    AS_IT_CAME,
    Generation,
    PolicyKind,
    PolicyRef,
    check_kind,
    check_pinned,
    policy_changed,
    tokens_allowed,
)
from rollstream.rollout_workers.engine_settings import VllmSettings
from rollstream.rollout_workers.engine_warden import OWNER_VARIABLE, start_warden
from rollstream.rollout_workers.vllm_adapters import VllmAdapters, lora_request
from rollstream.rollout_workers.vllm_configuration import (
    LOGPROBS_MODE,
    engine_arguments,
    environment,
    installed_backend,
)
from rollstream.rollout_workers.vllm_requests import drawn_by, read_output, vllm_sampling
from rollstream.rollout_workers.weight_files import Shape, check_model_folder, check_weights_fit, has_tied_head
from rollstream.schemas.errors import DataError, EngineDeadError, EngineError, SettingsError
from rollstream.schemas.tasks import SamplingParams

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

UPDATE_DEADLINE_S = 600.0
WARM_UP_DEADLINE_S = 300.0
SHUTDOWN_S = 5.0


class VllmEngine:
    """See the module; made by ``start``."""

    logprobs_mode = LOGPROBS_MODE

    def __init__(
        self,
        llm: AsyncLLM,
        model: Path,
        shapes: Mapping[str, Shape],
        reload_method: str,
        adapters: VllmAdapters | None = None,
    ) -> None:
        self._base_policy = AS_IT_CAME
        self.max_model_len: int = llm.vllm_config.model_config.max_model_len
        self._llm = llm
        self._model = model
        self._adapters = adapters
        self._shapes = shapes
        self._reload_method = reload_method
        self._numbers = itertools.count()
        self._in_flight: dict[str, set[str]] = {}
        self._pinned: dict[str, PolicyRef] = {}
        self._ousted: set[str] = set()
        self._updating = asyncio.Lock()
        self._death: str | None = None

    @classmethod
    async def start(cls, settings: VllmSettings, model: str) -> VllmEngine:
        """Start vLLM on the model in a folder and wait until it answers: 10 to 30 s on a CPU.

        Raises:
            SettingsError: vLLM is not installed, the folder is no model, or vLLM refuses to start with it.
        """
        config, shapes = await asyncio.to_thread(check_model_folder, model)
        backend = installed_backend()
        for name, value in environment(settings, backend).items():
            os.environ.setdefault(name, value)
        os.environ[OWNER_VARIABLE] = str(os.getpid())
        start_warden()
        needs_repacking = backend == "cpu" and has_tied_head(config, shapes)
        arguments = engine_arguments(settings, model, backend)
        try:
            llm = await asyncio.to_thread(_create, arguments)
        except Exception as error:
            raise SettingsError(
                f"vLLM did not start with the model {model!r}: {type(error).__name__}: {error}. Its own messages are "
                "above; the usual remedies are max_model_len, gpu_memory_utilization or cpu_kv_cache_gib"
            ) from error
        reload_method = "reload_tied_weights" if needs_repacking else "reload_weights"
        engine = cls(llm, Path(model), shapes, reload_method)
        try:
            if settings.max_lora_rank is not None:
                rank, is_cpu = settings.max_lora_rank, backend == "cpu"
                engine._adapters = await VllmAdapters.make(llm, shapes, rank, needs_null=is_cpu)
            await engine._warm_up()
        except BaseException:
            await engine.close()
            raise
        return engine

    @property
    def policy(self) -> PolicyRef:
        """See `Engine`."""
        return self._base_policy if self._adapters is None else self._adapters.shelf.serving

    @property
    def serves_adapters(self) -> bool:
        """See `Engine`."""
        return self._adapters is not None

    @property
    def held_policies(self) -> frozenset[PolicyRef]:
        """See `Engine`."""
        return frozenset() if self._adapters is None else self._adapters.shelf.in_use()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int],
        policy: PolicyRef | None = None,
    ) -> Generation:
        """See `Engine`."""
        allowed = tokens_allowed(prompt_ids, max_tokens, self.max_model_len, request_id)
        self._raise_if_dead(request_id)
        ask = list(prompt_ids), vllm_sampling(sampling, allowed, stop_token_ids)
        if self._adapters is None:
            if policy is not None and policy != self.policy:
                raise policy_changed(policy, self.policy, request_id)
            return check_pinned(await self._generation(*ask, request_id, policy, None), policy, request_id)
        adapter = self._adapters.shelf.take(policy, request_id)
        try:
            drawn = await self._generation(*ask, request_id, None, lora_request(adapter))
        finally:
            self._adapters.shelf.give_back(adapter.policy)
        return drawn_by(adapter.policy, drawn)

    async def _generation(
        self, prompt_ids: list[int], params: Any, request_id: str, policy: PolicyRef | None, lora: LoRARequest | None
    ) -> Generation:
        from vllm.exceptions import VLLMClientError, VLLMError

        internal_id = f"{request_id}#{next(self._numbers)}"
        self._in_flight.setdefault(request_id, set()).add(internal_id)
        if policy is not None:
            self._pinned[internal_id] = policy
        try:
            output = await self._final_output(prompt_ids, params, internal_id, lora)
            if policy is not None and internal_id in self._ousted:
                raise policy_changed(policy, self.policy, request_id)
        except VLLMClientError as error:
            raise DataError(f"vLLM refuses request {request_id!r}: {error}") from error
        except VLLMError as error:
            raise EngineError(f"request {request_id!r} failed in vLLM: {error!r}") from error
        finally:
            self._forget(request_id, internal_id)
        self._raise_if_dead(request_id)
        return read_output(output, request_id)

    async def abort(self, request_id: str) -> None:
        """See `Engine`."""
        if internal_ids := self._in_flight.get(request_id):
            await self._llm.abort(list(internal_ids))

    async def update_weights(self, path: Path | None, policy: PolicyRef, *, kind: PolicyKind = "full") -> None:
        """See `Engine`. While a whole model is loaded, running requests are frozen; their caches are computed anew."""
        check_kind(kind, policy, serves_adapters=self.serves_adapters)
        async with self._updating:
            self._raise_if_dead(f"update to {policy}")
            if self._adapters is not None:
                await self._adapters.serve(path, policy)
                return
            directory = self._model if path is None else path
            await asyncio.to_thread(check_weights_fit, directory, self._shapes)
            load = asyncio.ensure_future(self._load(directory, policy))
            try:
                await asyncio.shield(load)
            finally:
                # Cancelled or not, an update is finished: weights and their label must agree.
                if not load.done():
                    await asyncio.wait([load])

    async def hold_adapter(self, path: Path, policy: PolicyRef) -> None:
        """See `Engine`."""
        if self._adapters is None:
            check_kind("lora", policy, serves_adapters=False)
            return
        self._raise_if_dead(f"adapter of {policy}")
        await self._adapters.hold(path, policy)

    def release_adapter(self, policy: PolicyRef) -> None:
        """See `Engine`."""
        if self._adapters is not None:
            self._adapters.shelf.give_back(policy)

    async def close(self) -> None:
        """See `Engine`."""
        is_first = self._death != "it is closed"
        self._death = "it is closed"
        if is_first:
            running = [internal_id for ids in self._in_flight.values() for internal_id in ids]
            if running and not self._llm.errored:
                await self._llm.abort(running)
            if self._llm.output_handler is not None:
                self._llm.output_handler.cancel()  # or it takes the end of the engine process for a failure and logs it
            await asyncio.to_thread(self._llm.shutdown, SHUTDOWN_S)
            # vLLM closes its sockets but leaves their context to the garbage collector.
            await asyncio.to_thread(self._llm.engine_core.resources.ctx.destroy, 0)
            if self._adapters is not None:
                await asyncio.to_thread(self._adapters.close)

    async def _warm_up(self) -> None:
        async with asyncio.timeout(WARM_UP_DEADLINE_S):
            await self._llm.update_weight_version(str(self.policy))
            await self.generate([0], SamplingParams(), "warm-up", max_tokens=1, stop_token_ids=[])

    async def _final_output(
        self, prompt_ids: list[int], params: Any, internal_id: str, lora: LoRARequest | None
    ) -> RequestOutput:
        prompt: Any = {"prompt_token_ids": prompt_ids}
        async for output in self._llm.generate(prompt, params, internal_id, lora_request=lora):
            if output.finished:
                return output
        raise EngineError(f"vLLM ended request {internal_id!r} without an output")

    async def _load(self, path: Path, policy: PolicyRef) -> None:
        try:
            async with asyncio.timeout(UPDATE_DEADLINE_S):
                await self._oust_for(policy)
                await self._llm.pause_generation(mode="keep", clear_cache=False)
                try:
                    await self._llm.collective_rpc(self._reload_method, kwargs={"weights_path": str(path)})
                    await self._llm.update_weight_version(str(policy))
                    if not await self._llm.reset_prefix_cache(reset_running_requests=True):
                        raise EngineError("vLLM did not reset its prefix cache")
                except Exception as error:
                    self._death = f"loading {str(path)!r} as policy {policy} failed half-way: {error!r}"
                    raise
                finally:
                    await self._llm.resume_generation()
        except Exception as error:
            self._death = self._death or f"it did not pause for policy {policy}: {error!r}"
            raise EngineDeadError(f"the engine is dead, {self._death}; start it again") from error
        self._base_policy = policy

    async def _oust_for(self, policy: PolicyRef) -> None:
        """Requests pinned to other weights end now: their next token would be of the wrong ones."""
        if ousted := [internal_id for internal_id, pin in self._pinned.items() if pin != policy]:
            self._ousted.update(ousted)
            await self._llm.abort(ousted)

    def _forget(self, request_id: str, internal_id: str) -> None:
        internal_ids = self._in_flight[request_id]
        internal_ids.discard(internal_id)
        if not internal_ids:
            del self._in_flight[request_id]
        self._pinned.pop(internal_id, None)
        self._ousted.discard(internal_id)

    def _raise_if_dead(self, request_id: str) -> None:
        if self._death is not None:
            raise EngineDeadError(f"request {request_id!r} failed: the engine is dead, {self._death}")
        if self._llm.errored:
            raise EngineDeadError(
                f"request {request_id!r} failed: vLLM's engine process has died; its messages are above"
            )


def _create(arguments: dict[str, Any]) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
