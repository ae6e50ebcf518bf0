"""Which engine, and how it runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, HttpUrl, SecretStr

from rollstream.rollout_workers.engine import Engine
from rollstream.rollout_workers.scripted_engine import LatencyProfile, ScriptedEngine, ScriptedFaults
from rollstream.rollout_workers.scripts import load_script

LoraRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]
"""Those vLLM has room for."""


class VllmSettings(BaseModel):
    """vLLM in the worker's process. Left out, a value is what suits the machine: see each field."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["vllm"] = "vllm"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: float32 on a CPU, the model's own on a GPU."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Tokens of prompt and response together; default: what the model was made for."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Requests in one batch; no less than the episodes in flight."""
    seed: int = 0
    """Seed of the whole engine. Requests have none: on a CPU that can end the engine."""
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of the accelerator's memory; default: 0.9 on a GPU, 0.1 of main memory on a CPU."""
    cpu_kv_cache_gib: int = Field(default=1, ge=1)
    """Memory for keys and values on a CPU."""
    cpu_threads: int = Field(default=1, ge=1)
    """Threads of the engine process on a CPU. A small model gains nothing from a second one."""
    enforce_eager: bool | None = None
    """Do not compile; default: true on a CPU (saves a minute of start), false on a GPU."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens per cache block; default: 32 on a CPU, vLLM's own on a GPU."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs one copy of the model is spread over."""
    max_lora_rank: LoraRank | None = None
    """Serve LoRA adapters of up to this rank on the model the engine is started with; default: whole models."""
    max_adapters: int = Field(default=4, ge=2)
    """Adapters in one batch; requests on a further one wait. Only with `max_lora_rank`."""
    engine_args: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further arguments of vLLM's `AsyncEngineArgs`, by their names there."""


class VllmServerSettings(BaseModel):
    """A vLLM server that runs elsewhere: token ids both ways over HTTP.

    It needs ``--enable-scale-out``, ``--logprobs-mode processed_logprobs`` and ``VLLM_SERVER_DEV_MODE=1``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["vllm-server"] = "vllm-server"
    base_url: HttpUrl
    """Where it listens: `http://host:8000`."""
    served_model: str | None = None
    """Its `--served-model-name`; default: the only one it serves."""
    api_key: SecretStr | None = None
    """Its `--api-key`."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """How long it may take to become healthy."""
    request_timeout_s: float = Field(default=1800.0, gt=0)
    """How long one turn may take."""
    update_timeout_s: float = Field(default=600.0, gt=0)
    """How long loading weights may take."""
    max_connections: int = Field(default=512, ge=1)
    """Requests in flight at once."""


class ScriptedSettings(BaseModel):
    """No model: a script answers, with the timing of a real engine. Goes with the byte chat format."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["scripted"] = "scripted"
    script: str = "arithmetic"
    """`arithmetic`, `long_tailed` or `module:function`."""
    seed: int = 0
    """Same seed and request: same words, same timing."""
    max_model_len: int = Field(default=32768, ge=2)
    """Tokens (bytes) of prompt and response together."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Requests that run at once; others wait."""
    serves_adapters: bool = False
    """Policies are LoRA adapters, side by side, and not whole models, one at a time."""
    latency: LatencyProfile = LatencyProfile()
    """How long generations take."""
    faults: ScriptedFaults = ScriptedFaults()
    """What goes wrong."""


EngineSettings = Annotated[VllmSettings | VllmServerSettings | ScriptedSettings, Field(discriminator="kind")]


async def build_engine(settings: EngineSettings, model: str = "") -> Engine:
    """Start the engine and return it when it answers. ``model``: folder of the model for `vllm`, unused by others.

    Raises:
        SettingsError: the engine cannot run as configured; the message says what to change.
        EngineError: it did not start.
    """
    if isinstance(settings, ScriptedSettings):
        return ScriptedEngine(
            load_script(settings.script),
            seed=settings.seed,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=settings.max_model_len,
            serves_adapters=settings.serves_adapters,
            latency=settings.latency,
            faults=settings.faults,
        )
    if isinstance(settings, VllmServerSettings):
        from rollstream.rollout_workers.vllm_server_engine import VllmServerEngine

        return await VllmServerEngine.connect(settings)
    from rollstream.rollout_workers.vllm_engine import VllmEngine

    return await VllmEngine.start(settings, model)
