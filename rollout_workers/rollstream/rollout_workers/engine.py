"""What generates tokens: one Protocol, whatever is behind it (vLLM in process, a vLLM server, a script)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rollstream.schemas.errors import DataError, EngineError, PolicyFilesError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import VersionSpan

FinishReason = Literal["stop", "length", "abort"]
PolicyKind = Literal["full", "lora"]


@dataclass(frozen=True, slots=True, order=True)
class PolicyRef:
    """Which weights. Newer = greater (lineage, version); (0, 0) is what the engine was started with."""

    lineage: int = 0
    version: int = 0

    def __str__(self) -> str:
        return f"{self.lineage}:{self.version}"

    @classmethod
    def parse(cls, text: str) -> PolicyRef:
        """The inverse of ``str``.

        Raises:
            ValueError: the text is not ``lineage:version``.
        """
        lineage, separator, version = text.partition(":")
        if not separator:
            raise ValueError(f"{text!r} is not a policy reference: expected 'lineage:version'")
        return cls(int(lineage), int(version))


AS_IT_CAME = PolicyRef()
"""The model as the engine was started with it."""


class PolicyChangedError(EngineError):
    """Other weights than the pinned ones would have drawn tokens, or have: nothing of the generation counts."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one request sampled.

    Attributes:
        ids: the sampled token ids, the stop token included.
        logprobs: ``logprobs[i]`` is the natural log of the probability of ``ids[i]`` under the distribution it was
            drawn from.
        finish_reason: ``stop`` (a stop token, the last of ``ids``), ``length`` (out of tokens) or ``abort``.
        spans: half-open, relative to ``ids``; they cover every id once, in order.
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    spans: list[VersionSpan]


class Engine(Protocol):
    """Token ids in, token ids out. Any number of requests at once; weights change between two tokens of a request."""

    @property
    def policy(self) -> PolicyRef:
        """The weights new tokens are drawn with; of an engine with adapters, those of new requests."""
        ...

    @property
    def serves_adapters(self) -> bool:
        """Whether policies are LoRA adapters, any number side by side, and not whole models, one at a time."""
        ...

    @property
    def held_policies(self) -> frozenset[PolicyRef]:
        """Whose files it needs beside those of ``policy``: adapters that are in use or held."""
        ...

    @property
    def max_model_len(self) -> int:
        """Prompt and sampled tokens together never exceed it."""
        ...

    @property
    def logprobs_mode(self) -> str:
        """What ``Generation.logprobs`` means; part of every trajectory."""
        ...

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
        """Sample until a stop token, ``max_tokens`` or the end of the context. Cancelling it aborts the request.

        Whole models are exchanged between two tokens of a request; an adapter draws its requests to their end.

        Args:
            prompt_ids: all ids so far.
            sampling: the distribution.
            request_id: for ``abort`` and for logs; need not be unique.
            max_tokens: at most so many are sampled.
            stop_token_ids: ids that end the turn.
            policy: the only weights that may draw its tokens; None: whatever the engine serves.

        Raises:
            DataError: the prompt is empty or leaves no room for a token.
            PolicyChangedError: ``policy`` is not in the engine, or was exchanged meanwhile.
            EngineError: the engine failed; EngineDeadError if it will never answer again.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request early: its ``generate`` returns what it has as ``abort``. Unknown ids are ignored."""
        ...

    async def update_weights(self, path: Path | None, policy: PolicyRef, *, kind: PolicyKind = "full") -> None:
        """Serve the weights in the directory ``path``; None: the model as it came.

        A whole model is loaded between two tokens, and running requests go on with it; those pinned to another end
        with PolicyChangedError. An adapter serves new requests only.

        Raises:
            PolicyFilesError: the files do not fit, or are not of the kind it serves; the old weights serve on.
            EngineError: loading failed half-way; the engine is dead.
        """
        ...

    async def hold_adapter(self, path: Path, policy: PolicyRef) -> None:
        """Keep an adapter in the engine for requests pinned to it, until it is released as often as it was held.

        Raises:
            PolicyFilesError: it does not fit, or the engine serves whole models.
            EngineError: the engine has died.
        """
        ...

    def release_adapter(self, policy: PolicyRef) -> None:
        """The inverse of ``hold_adapter``; unknown ones are ignored. It leaves the engine when others come or go."""
        ...

    async def close(self) -> None:
        """Stop for good. Requests still running fail. Safe to repeat."""
        ...


def tokens_allowed(prompt_ids: Sequence[int], max_tokens: int, max_model_len: int, request_id: str) -> int:
    """``max_tokens``, cut to what fits behind the prompt.

    Raises:
        DataError: the prompt is empty or leaves no room for a token.
    """
    if not prompt_ids:
        raise DataError(f"request {request_id!r} has an empty prompt: give it at least one token")
    room = max_model_len - len(prompt_ids)
    if room <= 0 or max_tokens <= 0:
        raise DataError(
            f"request {request_id!r} leaves no room to sample: {len(prompt_ids)} prompt tokens, max_model_len "
            f"{max_model_len}, max_tokens {max_tokens}; shorten the prompt or raise max_model_len"
        )
    return min(max_tokens, room)


def read_spans(spans: Sequence[tuple[str, int, int]]) -> list[VersionSpan]:
    """Spans from (label, start, end) triples whose labels are policies as ``str(PolicyRef)`` writes them.

    Raises:
        EngineError: a label is not ours: somebody else changes this engine's weights.
    """
    try:
        policies = [PolicyRef.parse(label) for label, _, _ in spans]
    except ValueError as error:
        raise EngineError(f"the engine's weights carry a foreign label: {error}") from error
    return [
        VersionSpan(start, end, policy.version, policy.lineage)
        for policy, (_, start, end) in zip(policies, spans, strict=True)
        if end > start
    ]


def checked_generation(
    ids: list[int], logprobs: list[float], finish_reason: str | None, spans: list[VersionSpan], request_id: str
) -> Generation:
    """A generation whose parts agree.

    Raises:
        EngineError: they do not.
    """
    if finish_reason not in ("stop", "length", "abort"):
        raise EngineError(f"request {request_id!r} ended as {finish_reason!r}")
    ends = [0, *(span.end for span in spans)]
    is_covered = [span.start for span in spans] == ends[:-1] and ends[-1] == len(ids)
    if len(logprobs) != len(ids) or not is_covered:
        raise EngineError(
            f"the engine answered request {request_id!r} with {len(ids)} ids, {len(logprobs)} logprobs and "
            f"versions {spans}"
        )
    return Generation(ids, logprobs, finish_reason, spans)


def check_pinned(generation: Generation, policy: PolicyRef | None, request_id: str) -> Generation:
    """The generation, if nothing but ``policy`` drew its tokens.

    Raises:
        PolicyChangedError: something else did.
    """
    others = {PolicyRef(span.lineage, span.version) for span in generation.spans} - {policy}
    if policy is not None and others:
        raise policy_changed(policy, max(others), request_id)
    return generation


def policy_changed(policy: PolicyRef, serving: PolicyRef, request_id: str) -> PolicyChangedError:
    """Of a request pinned to weights that no longer serve."""
    return PolicyChangedError(
        f"request {request_id!r} is pinned to policy {policy}, the engine serves {serving}: other episodes waited "
        "longer than pin_hold_s; raise it, or give pinned episodes a smaller wall_clock_s"
    )


def check_kind(kind: PolicyKind, policy: PolicyRef, *, serves_adapters: bool) -> None:
    """Nothing, if an engine of its kind can serve the policy.

    Raises:
        PolicyFilesError: it cannot.
    """
    if kind == "lora" and not serves_adapters:
        raise PolicyFilesError(
            f"policy {policy} is a LoRA adapter and this engine serves whole models: start the worker with "
            "rollout_worker.engine.max_lora_rank of at least its rank"
        )
    if kind == "full" and serves_adapters and policy != AS_IT_CAME:
        raise PolicyFilesError(
            f"policy {policy} is a whole model and this engine serves LoRA adapters on the model it was started with, "
            "which must not change under them: start the worker without rollout_worker.engine.max_lora_rank, or with "
            "that model"
        )
