"""What generates tokens: one Protocol, whatever is behind it (vLLM in process, a vLLM server, a script)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from rollstream.schemas.errors import DataError, EngineError
from rollstream.schemas.tasks import SamplingParams
from rollstream.schemas.trajectories import VersionSpan

FinishReason = Literal["stop", "length", "abort"]


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
        """The weights new tokens are drawn with."""
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
    ) -> Generation:
        """Sample until a stop token, ``max_tokens`` or the end of the context. Cancelling it aborts the request.

        Raises:
            DataError: the prompt is empty or leaves no room for a token.
            EngineError: the engine failed; EngineDeadError if it will never answer again.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request early: its ``generate`` returns what it has as ``abort``. Unknown ids are ignored."""
        ...

    async def update_weights(self, path: Path, policy: PolicyRef) -> None:
        """Load the weights in the directory ``path``; running requests go on with them from their next token.

        Raises:
            PolicyFilesError: the files do not fit; nothing was touched, the old weights serve on.
            EngineError: loading failed half-way; the engine is dead.
        """
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
