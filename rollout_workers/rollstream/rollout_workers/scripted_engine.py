"""An engine that says what a script says, with the timing of a real one. For tests, simulation and benchmarks.

Invariants: what is said and how long it takes are pure functions of (seed, request id, prompt); at most
``max_num_seqs`` requests run, the others wait in order; while weights change nobody advances; a token belongs to the
policy that served when it was due (of an engine with adapters: when its request began), and its logprob is
``scripted_logprob`` of that policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict

from rollstream.rollout_workers.adapter_shelf import AdapterShelf
from rollstream.rollout_workers.engine import (
    Generation,
    PolicyKind,
    PolicyRef,
    check_kind,
    check_pinned,
    policy_changed,
    tokens_allowed,
)
from rollstream.rollout_workers.scripted_requests import ScriptedRequest
from rollstream.schemas.errors import EngineDeadError, EngineError, PolicyFilesError
from rollstream.schemas.tasks import SamplingParams

FORBID_UNKNOWN = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class ScriptPrompt:
    """What a script decides on: the prompt, and randomness that belongs to the request."""

    ids: Sequence[int]
    rng: random.Random
    decode: Callable[[Sequence[int]], str]

    @property
    def text(self) -> str:
        """The decoded prompt."""
        return self.decode(self.ids)


class Script(Protocol):
    """The policy: from a prompt to the text of one turn, without the stop token."""

    def __call__(self, prompt: ScriptPrompt, /) -> str:
        """The text of the next turn."""
        ...


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """How long a generation takes, in seconds of a real engine, times ``time_scale`` on the wall."""

    __pydantic_config__ = FORBID_UNKNOWN

    prefill_s_per_token: float = 0.0
    token_s: float = 0.0
    """Median time per sampled token."""
    token_sigma: float = 0.0
    """Sigma of the lognormal factor on ``token_s``, drawn per request."""
    tail_probability: float = 0.0
    """Share of requests that are ``tail_factor`` times slower."""
    tail_factor: float = 1.0
    load_s: float = 0.0
    """Pause of every request while weights are loaded."""
    time_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ScriptedFaults:
    """What goes wrong, counted in generations begun since the start."""

    __pydantic_config__ = FORBID_UNKNOWN

    die_after: int | None = None
    """The engine dies when this many have begun and another one begins."""
    fail_every: int | None = None
    """Every n-th one fails alone."""
    slow_every: int | None = None
    """Every n-th one takes ``slow_factor`` times as long."""
    slow_factor: float = 10.0


def encode_bytes(text: str) -> list[int]:
    """One id per UTF-8 byte."""
    return list(text.encode())


def decode_bytes(ids: Sequence[int]) -> str:
    """Ids up to 255 are bytes; control ids become line breaks."""
    return bytes(token if token < 256 else 10 for token in ids).decode(errors="replace")


def scripted_logprob(policy: PolicyRef, position: int, token_id: int) -> float:
    """The logprob of a token at a position of the whole sequence under a policy: in [-4, 0), exact in float32."""
    mixed = token_id * 40503 + position * 9973 + policy.version * 2971 + policy.lineage * 1327
    return -((mixed % 4096) + 1) / 1024


class ScriptedEngine:
    """See the module. ``encode`` and ``decode`` belong to the chat format the worker renders with."""

    logprobs_mode = "processed_logprobs"

    def __init__(
        self,
        script: Script,
        *,
        seed: int = 0,
        max_num_seqs: int = 64,
        max_model_len: int = 32768,
        serves_adapters: bool = False,
        latency: LatencyProfile | None = None,
        faults: ScriptedFaults | None = None,
        encode: Callable[[str], list[int]] = encode_bytes,
        decode: Callable[[Sequence[int]], str] = decode_bytes,
    ) -> None:
        self.max_model_len = max_model_len
        self.serves_adapters = serves_adapters
        self._shelf = AdapterShelf()
        self._script = script
        self._seed = seed
        self._latency = latency or LatencyProfile()
        self._faults = faults or ScriptedFaults()
        self._encode = encode
        self._decode = decode
        self._begun = itertools.count(1)
        self._free_slots = max_num_seqs
        self._running: set[ScriptedRequest] = set()
        self._waiting: deque[ScriptedRequest] = deque()
        self._is_paused = False
        self._update = asyncio.Lock()
        self._death: str | None = None

    @property
    def policy(self) -> PolicyRef:
        """See `Engine`."""
        return self._shelf.serving

    @property
    def held_policies(self) -> frozenset[PolicyRef]:
        """See `Engine`."""
        return self._shelf.in_use() if self.serves_adapters else frozenset()

    @property
    def running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

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
        """See `Engine`. The sampling parameters do not change what a script says."""
        allowed = tokens_allowed(prompt_ids, max_tokens, self.max_model_len, request_id)
        self._raise_if_dead(request_id)
        number = next(self._begun)
        self._apply_faults(number, request_id)
        request = self._plan(prompt_ids, request_id, allowed, stop_token_ids, self._slowness(number))
        request.policy = policy
        if self.serves_adapters:
            request.policy = self._shelf.take(policy, request_id).policy
        self._enqueue(request)
        try:
            await self._run(request)
        finally:
            self._leave(request)
            if self.serves_adapters and request.policy is not None:
                self._shelf.give_back(request.policy)
        return check_pinned(self._result(request, len(prompt_ids)), policy, request_id)

    async def abort(self, request_id: str) -> None:
        """See `Engine`."""
        for request in [*self._running, *self._waiting]:
            if request.request_id == request_id:
                request.is_aborted = True
                request.wake.set()

    async def update_weights(self, path: Path | None, policy: PolicyRef, *, kind: PolicyKind = "full") -> None:
        """See `Engine`. A script has no weights: an existing directory is enough."""
        check_kind(kind, policy, serves_adapters=self.serves_adapters)
        await self._check_directory(path, policy)
        async with self._update:
            self._raise_if_dead(f"update to {policy}")
            if self.serves_adapters:
                self._shelf.put(self._shelf.prepare(policy, path))
                self._serve(policy)
                return
            self._pause()
            try:
                await asyncio.sleep(self._latency.load_s * self._latency.time_scale)
                self._serve(policy)
            finally:
                self._resume()

    async def hold_adapter(self, path: Path, policy: PolicyRef) -> None:
        """See `Engine`."""
        check_kind("lora", policy, serves_adapters=self.serves_adapters)
        await self._check_directory(path, policy)
        self._raise_if_dead(f"adapter of {policy}")
        self._shelf.put(self._shelf.prepare(policy, path))
        self._shelf.hold(policy)

    def release_adapter(self, policy: PolicyRef) -> None:
        """See `Engine`."""
        self._shelf.give_back(policy)
        self._shelf.pop_idle()

    async def _check_directory(self, path: Path | None, policy: PolicyRef) -> None:
        if path is not None and not await asyncio.to_thread(path.is_dir):
            raise PolicyFilesError(f"the directory {str(path)!r} of policy {policy} does not exist")

    def _serve(self, policy: PolicyRef) -> None:
        self._shelf.serving = policy
        self._shelf.pop_idle()

    def die(self, cause: str) -> None:
        """Fail every request there is and will be."""
        self._death = self._death or cause
        for request in [*self._running, *self._waiting]:
            request.wake.set()

    async def close(self) -> None:
        """See `Engine`."""
        self.die("it is closed")

    def _plan(
        self,
        prompt_ids: Sequence[int],
        request_id: str,
        allowed: int,
        stop_token_ids: Sequence[int],
        slowness: float,
    ) -> ScriptedRequest:
        rng = random.Random(f"{self._seed}/{request_id}")
        text = self._script(ScriptPrompt(prompt_ids, rng, self._decode))
        turn = self._encode(text) + list(stop_token_ids[:1])
        latency = self._latency
        factor = rng.lognormvariate(0.0, latency.token_sigma) if latency.token_sigma else 1.0
        if latency.tail_probability and rng.random() < latency.tail_probability:
            factor *= latency.tail_factor
        factor *= slowness * latency.time_scale
        prefill_s = latency.prefill_s_per_token * len(prompt_ids) * factor
        return ScriptedRequest(
            request_id=request_id,
            turn=turn[:allowed],
            finish_reason="length" if len(turn) > allowed else "stop",
            work_s=prefill_s + latency.token_s * min(len(turn), allowed) * factor,
            prefill_s=prefill_s,
        )

    async def _run(self, request: ScriptedRequest) -> None:
        clock = asyncio.get_running_loop().time
        while not request.is_aborted:
            self._raise_if_dead(request.request_id)
            if request.policy is not None and not self.serves_adapters and request.policy != self.policy:
                raise policy_changed(request.policy, self.policy, request.request_id)
            if request.has_slot and not self._is_paused:
                request.running_since = clock()
                await self._work_or_wake(request, request.work_s - request.done_s)
                request.advance(clock(), self._drawing(request))
                if request.is_complete:
                    return
            else:
                await request.wake.wait()
            request.wake.clear()

    async def _work_or_wake(self, request: ScriptedRequest, left_s: float) -> None:
        if left_s <= 0:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await request.wake.wait()

    def _enqueue(self, request: ScriptedRequest) -> None:
        self._waiting.append(request)
        self._grant_slots()

    def _leave(self, request: ScriptedRequest) -> None:
        if request.has_slot:
            self._running.discard(request)
            self._free_slots += 1
            self._grant_slots()
        else:
            self._waiting.remove(request)

    def _grant_slots(self) -> None:
        while self._free_slots and self._waiting:
            request = self._waiting.popleft()
            self._free_slots -= 1
            self._running.add(request)
            request.has_slot = True
            request.wake.set()

    def _pause(self) -> None:
        self._is_paused = True
        now = asyncio.get_running_loop().time()
        for request in self._running:
            request.advance(now, self._drawing(request))
            request.wake.set()

    def _drawing(self, request: ScriptedRequest) -> PolicyRef:
        return request.policy if self.serves_adapters and request.policy is not None else self.policy

    def _resume(self) -> None:
        self._is_paused = False
        for request in self._running:
            request.wake.set()

    def _result(self, request: ScriptedRequest, prompt_length: int) -> Generation:
        ids = request.turn[: request.sampled]
        return Generation(
            ids=ids,
            logprobs=[
                scripted_logprob(PolicyRef(span.lineage, span.version), prompt_length + index, ids[index])
                for span in request.spans
                for index in range(span.start, span.end)
            ],
            finish_reason=request.finish_reason if request.is_complete else "abort",
            spans=request.spans,
        )

    def _apply_faults(self, number: int, request_id: str) -> None:
        faults = self._faults
        if faults.die_after is not None and number > faults.die_after:
            self.die(f"it was told to after {faults.die_after} generations")
        self._raise_if_dead(request_id)
        if faults.fail_every and number % faults.fail_every == 0:
            raise EngineError(
                f"request {request_id!r} failed: the scripted engine fails every {faults.fail_every}th one"
            )

    def _slowness(self, number: int) -> float:
        every = self._faults.slow_every
        return self._faults.slow_factor if every and number % every == 0 else 1.0

    def _raise_if_dead(self, request_id: str) -> None:
        if self._death is not None:
            raise EngineDeadError(f"request {request_id!r} failed: the scripted engine is dead, {self._death}")
