"""An engine that says what a script says, with the timing of a real one. For tests, simulation and benchmarks.

Invariants: what is said and how long it takes are pure functions of (seed, request id, prompt); at most
``max_num_seqs`` requests run, the others wait in order; while weights change nobody advances; a token belongs to the
policy that served when it was due, and its logprob is ``scripted_logprob`` of that policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict

from rollstream.rollout_workers.engine import FinishReason, Generation, PolicyRef, tokens_allowed
from rollstream.schemas.errors import EngineDeadError, EngineError, PolicyFilesError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import VersionSpan

CLOCK_RESOLUTION_S = 1e-9
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


@dataclass(eq=False)
class _Request:
    request_id: str
    turn: list[int]
    finish_reason: FinishReason
    work_s: float
    """Engine seconds from its first slot to its last token."""
    prefill_s: float
    done_s: float = 0.0
    running_since: float | None = None
    has_slot: bool = False
    is_aborted: bool = False
    spans: list[VersionSpan] = field(default_factory=list[VersionSpan])
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_complete(self) -> bool:
        return self.sampled == len(self.turn)

    @property
    def sampled(self) -> int:
        return self.spans[-1].end if self.spans else 0

    def advance(self, now: float, policy: PolicyRef) -> None:
        """Account for the time since it ran last: the tokens due by now were drawn by ``policy``."""
        if self.running_since is None:
            return
        self.done_s += now - self.running_since
        self.running_since = None
        decoded_s = self.done_s - self.prefill_s
        if self.done_s >= self.work_s - CLOCK_RESOLUTION_S:
            due = len(self.turn)
        elif decoded_s > 0:
            due = int(len(self.turn) * decoded_s / (self.work_s - self.prefill_s))
        else:
            due = 0
        if due > self.sampled:
            self.spans.append(VersionSpan(self.sampled, due, policy.version, policy.lineage))


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
        latency: LatencyProfile | None = None,
        faults: ScriptedFaults | None = None,
        encode: Callable[[str], list[int]] = encode_bytes,
        decode: Callable[[Sequence[int]], str] = decode_bytes,
    ) -> None:
        self.max_model_len = max_model_len
        self.policy = PolicyRef()
        self._script = script
        self._seed = seed
        self._latency = latency or LatencyProfile()
        self._faults = faults or ScriptedFaults()
        self._encode = encode
        self._decode = decode
        self._begun = itertools.count(1)
        self._free_slots = max_num_seqs
        self._running: set[_Request] = set()
        self._waiting: deque[_Request] = deque()
        self._is_paused = False
        self._update = asyncio.Lock()
        self._death: str | None = None

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
    ) -> Generation:
        """See `Engine`. The sampling parameters do not change what a script says."""
        allowed = tokens_allowed(prompt_ids, max_tokens, self.max_model_len, request_id)
        self._raise_if_dead(request_id)
        number = next(self._begun)
        self._apply_faults(number, request_id)
        request = self._plan(prompt_ids, request_id, allowed, stop_token_ids, self._slowness(number))
        self._enqueue(request)
        try:
            await self._run(request)
        finally:
            self._leave(request)
        return self._result(request, len(prompt_ids))

    async def abort(self, request_id: str) -> None:
        """See `Engine`."""
        for request in [*self._running, *self._waiting]:
            if request.request_id == request_id:
                request.is_aborted = True
                request.wake.set()

    async def update_weights(self, path: Path, policy: PolicyRef) -> None:
        """See `Engine`. A script has no weights: an existing directory is enough."""
        if not await asyncio.to_thread(path.is_dir):
            raise PolicyFilesError(f"the directory {str(path)!r} of policy {policy} does not exist")
        async with self._update:
            self._raise_if_dead(f"update to {policy}")
            self._pause()
            try:
                await asyncio.sleep(self._latency.load_s * self._latency.time_scale)
                self.policy = policy
            finally:
                self._resume()

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
    ) -> _Request:
        rng = random.Random(f"{self._seed}/{request_id}")
        text = self._script(ScriptPrompt(prompt_ids, rng, self._decode))
        turn = self._encode(text) + list(stop_token_ids[:1])
        latency = self._latency
        factor = rng.lognormvariate(0.0, latency.token_sigma) if latency.token_sigma else 1.0
        if latency.tail_probability and rng.random() < latency.tail_probability:
            factor *= latency.tail_factor
        factor *= slowness * latency.time_scale
        prefill_s = latency.prefill_s_per_token * len(prompt_ids) * factor
        return _Request(
            request_id=request_id,
            turn=turn[:allowed],
            finish_reason="length" if len(turn) > allowed else "stop",
            work_s=prefill_s + latency.token_s * min(len(turn), allowed) * factor,
            prefill_s=prefill_s,
        )

    async def _run(self, request: _Request) -> None:
        clock = asyncio.get_running_loop().time
        while not request.is_aborted:
            self._raise_if_dead(request.request_id)
            if request.has_slot and not self._is_paused:
                request.running_since = clock()
                await self._work_or_wake(request, request.work_s - request.done_s)
                request.advance(clock(), self.policy)
                if request.is_complete:
                    return
            else:
                await request.wake.wait()
            request.wake.clear()

    async def _work_or_wake(self, request: _Request, left_s: float) -> None:
        if left_s <= 0:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await request.wake.wait()

    def _enqueue(self, request: _Request) -> None:
        self._waiting.append(request)
        self._grant_slots()

    def _leave(self, request: _Request) -> None:
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
            request.advance(now, self.policy)
            request.wake.set()

    def _resume(self) -> None:
        self._is_paused = False
        for request in self._running:
            request.wake.set()

    def _result(self, request: _Request, prompt_length: int) -> Generation:
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
