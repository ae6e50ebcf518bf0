"""What a policy update costs the generation that goes on meanwhile.

Three ways to run the same requests on the tiny model with vLLM, in turns: no update; updates as our engine does them
(pause, keep what was sampled, load, compute the caches anew, go on); and updates as engines without that do them (abort
every request, load, send each again with what it had as part of its prompt). What a run takes longer than the one
without updates, divided by the updates, is what one update costs. Scripted: what the pause adds to the loading itself.
A fourth way, with vLLM started for LoRA: each update is an adapter that new requests use, and nothing is paused.
"""
# safetensors is partly annotated:
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, figure
from safetensors.numpy import save_file
from workbench import Workbench, spread

from rollstream.cli.tiny_model import ensure_tiny_model
from rollstream.rollout_workers.engine import Engine, PolicyKind, PolicyRef
from rollstream.rollout_workers.engine_settings import ScriptedSettings, VllmSettings, build_engine
from rollstream.rollout_workers.scripted_engine import LatencyProfile
from rollstream.rollout_workers.weight_files import Shape, read_shapes
from rollstream.schemas.tasks import SamplingParams

COMMAND = "python benchmarks/run.py --only weight_update"
IN_FLIGHT = 32
PROMPT_TOKENS = 64
UPDATES = 3
ADAPTER_RANK = 8
SCRIPTED_LOAD_S = 0.05
SCRIPTED_TOKENS_PER_S = 200


@dataclass(frozen=True)
class Costs:
    """Of every update, in seconds: how long nothing was sampled, and how much later the requests ended for it."""

    pauses_s: list[float]
    lost_s: list[float]


@dataclass
class Load:
    """``IN_FLIGHT`` requests that run until each has its tokens, whatever happens on the way."""

    engine: Engine
    tokens: int
    _running: set[str] = field(default_factory=set[str])
    _is_open: asyncio.Event = field(default_factory=asyncio.Event)
    _is_quiet: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, disturb: Callable[[], Awaitable[None]] | None = None) -> float:
        """Seconds until all requests have ended."""
        self._is_open.set()
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            if disturb is not None:
                group.create_task(_awaited(disturb()))
            for number in range(IN_FLIGHT):
                group.create_task(self._request(number))
        return time.perf_counter() - begin

    async def _request(self, number: int) -> None:
        ids = [1 + (number * 31 + place) % 250 for place in range(PROMPT_TOKENS)]
        while (left := PROMPT_TOKENS + self.tokens - len(ids)) > 0:
            await self._is_open.wait()
            request_id = f"{number}-{len(ids)}"
            self._running.add(request_id)
            try:
                generation = await self.engine.generate(
                    ids, SamplingParams(), request_id, max_tokens=left, stop_token_ids=[]
                )
            finally:
                self._running.discard(request_id)
                if not self._running:
                    self._is_quiet.set()
            ids += generation.ids

    async def abort_all(self) -> None:
        """Every request comes back with what it has; none is sent again before ``reopen``."""
        self._is_open.clear()
        for request_id in list(self._running):
            await self.engine.abort(request_id)
        if self._running:
            self._is_quiet.clear()
            await self._is_quiet.wait()

    def reopen(self) -> None:
        """Let the requests go on."""
        self._is_open.set()


def measure(bench: Workbench) -> list[Figure]:
    """Scripted and with vLLM; quick: scripted alone."""
    return _figures("scripted", *asyncio.run(_scripted(bench))) + ([] if bench.is_quick else _measure_vllm(bench))


def _measure_vllm(bench: Workbench) -> list[Figure]:
    model = ensure_tiny_model(progress=bench.say)
    figures = _figures("tiny model, vLLM on CPU", *asyncio.run(_vllm(bench, model)))
    return [*figures, *_adapter_figures(asyncio.run(_adapters(bench, model)))]


async def _scripted(bench: Workbench) -> tuple[Costs, Costs]:
    latency = LatencyProfile(prefill_s_per_token=1e-4, token_s=1 / SCRIPTED_TOKENS_PER_S, load_s=SCRIPTED_LOAD_S)
    engine = await build_engine(ScriptedSettings(script="long_tailed", latency=latency))
    return await _compare(bench, engine, bench.folder, tokens=bench.size(600, 100), rounds=bench.size(3, 1))


async def _vllm(bench: Workbench, model: Path) -> tuple[Costs, Costs]:
    bench.say("starting vLLM")
    engine = await build_engine(VllmSettings(max_num_seqs=IN_FLIGHT), str(model))
    return await _compare(bench, engine, model, tokens=600, rounds=5)


async def _adapters(bench: Workbench, model: Path) -> Costs:
    """What an adapter that comes costs the requests that run on another."""
    bench.say(f"starting vLLM for adapters of rank {ADAPTER_RANK}")
    adapter = write_adapter(bench.folder / "adapter", await asyncio.to_thread(read_shapes, model), ADAPTER_RANK)
    settings = VllmSettings(max_num_seqs=IN_FLIGHT, max_lora_rank=ADAPTER_RANK)
    load, costs = Load(await build_engine(settings, str(model)), tokens=600), Costs([], [])
    try:
        await load.engine.update_weights(adapter, PolicyRef(1, 1), kind="lora")
        usual_s = await load.run()
        for number in range(5):
            bench.say(f"round {number + 1} of 5: {IN_FLIGHT} requests, {UPDATES} adapters on the way")
            undisturbed_s = await load.run()
            wall_s = await load.run(
                lambda: _update_now_and_then(
                    load, adapter, usual_s / (UPDATES + 1), costs.pauses_s, is_aborting=False, kind="lora"
                )
            )
            costs.lost_s.append((wall_s - undisturbed_s) / UPDATES)
    finally:
        await load.engine.close()
    return costs


def write_adapter(directory: Path, shapes: Mapping[str, Shape], rank: int) -> Path:
    """Random matrices for every projection of a model, as PEFT saves them."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Any] = {}
    projections = {name: shape for name, shape in shapes.items() if name.endswith("proj.weight")}
    for name, shape in projections.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{layer}.lora_A.weight"] = rng.normal(0, 0.02, (rank, shape[1])).astype(np.float32)
        tensors[f"{layer}.lora_B.weight"] = rng.normal(0, 0.02, (shape[0], rank)).astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    targets = sorted(
        {name.removesuffix(".weight").rpartition(".")[2] for name in shapes if name.endswith("proj.weight")}
    )
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


async def _compare(bench: Workbench, engine: Engine, weights: Path, *, tokens: int, rounds: int) -> tuple[Costs, Costs]:
    """What an update costs as our engine does it, and with abort and resubmit."""
    load = Load(engine, tokens)
    kept, aborted = Costs([], []), Costs([], [])
    try:
        usual_s = await load.run()
        for number in range(rounds):
            bench.say(f"round {number + 1} of {rounds}: {IN_FLIGHT} requests, {UPDATES} updates on the way")
            undisturbed_s = await load.run()
            for costs, is_aborting in ((kept, False), (aborted, True)):
                pauses_s: list[float] = []
                wall_s = await load.run(
                    lambda is_aborting=is_aborting, pauses_s=pauses_s: _update_now_and_then(
                        load, weights, usual_s / (UPDATES + 1), pauses_s, is_aborting=is_aborting
                    )
                )
                costs.pauses_s.extend(pauses_s)
                costs.lost_s.append((wall_s - undisturbed_s) / UPDATES)
    finally:
        await engine.close()
    return kept, aborted


async def _update_now_and_then(
    load: Load,
    weights: Path,
    interval_s: float,
    pauses_s: list[float],
    *,
    is_aborting: bool,
    kind: PolicyKind = "full",
) -> None:
    for _ in range(UPDATES):
        await asyncio.sleep(interval_s)
        policy = PolicyRef(1, load.engine.policy.version + 1)
        begin = time.perf_counter()
        if is_aborting:
            await load.abort_all()
        await load.engine.update_weights(weights, policy, kind=kind)
        load.reopen()
        pauses_s.append(time.perf_counter() - begin)


async def _awaited(disturbance: Awaitable[None]) -> None:
    await disturbance


def _adapter_figures(costs: Costs) -> list[Figure]:
    return [
        figure("weight update, LoRA adapter, tiny model, vLLM on CPU", statistics.median(costs.pauses_s), "s",
               higher_is_better=False, command=COMMAND,
               note=f"until new requests use it, checks of its files included: {spread(costs.pauses_s)}; rank "
               f"{ADAPTER_RANK} on every projection, nothing is paused, {IN_FLIGHT} requests in flight; generation "
               f"held up per update {spread(costs.lost_s)}"),
    ]  # fmt: skip


def _figures(engine: str, kept: Costs, aborted: Costs) -> list[Figure]:
    pause_s, lost_s = statistics.median(kept.pauses_s), statistics.median(kept.lost_s)
    loading = f", {SCRIPTED_LOAD_S} s of it loading" if engine == "scripted" else ""
    return [
        figure(f"weight update, pause, {engine}", pause_s, "s", higher_is_better=False, command=COMMAND,
               versus="abort and resubmit",
               note=f"{spread(kept.pauses_s)}{loading}, {IN_FLIGHT} requests in flight; abort and resubmit "
               f"{spread(aborted.pauses_s)}"),
        figure(f"weight update, generation held up, {engine}", lost_s, "s", higher_is_better=False, command=COMMAND,
               versus="abort and resubmit",
               note=f"per update, pause and computing the caches anew: {spread(kept.lost_s)}; abort and resubmit "
               f"{spread(aborted.lost_s)}"),
    ]  # fmt: skip
