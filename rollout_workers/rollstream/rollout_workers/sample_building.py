"""One growing training sequence: sampled tokens and observations in the order the model saw them. Pure.

Invariant: ids are only ever appended, never decoded and encoded again; each sampled id has its logprob and its policy
version, each observed id has mask 0 and logprob 0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from rollstream.schemas.trajectories import Sample, Turn, VersionSpan


class RecordedGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """A generation as the journal keeps it. ``logprobs[i]`` belongs to ``ids[i]``; spans are relative to ``ids``."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length", "abort"]
    spans: list[VersionSpan]
    generate_s: float
    limit: Literal["max_tokens", "context_length"] = "max_tokens"
    """What has cut it, if ``finish_reason`` is ``length``."""


@dataclass(frozen=True, slots=True)
class TurnOutcome:
    """What became of a turn after its tokens were sampled."""

    tool_calls: int = 0
    is_malformed: bool = False
    tool_s: float = 0.0


class SampleBuilder:
    """Grows one sample. ``ids`` is what the engine is given next."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._prompt_length = len(prompt_ids)
        self.ids: list[int] = list(prompt_ids)
        self._mask: list[int] = []
        self._logprobs: list[float] = []
        self._spans: list[VersionSpan] = []
        self._turns: list[Turn] = []
        self._outcomes: list[TurnOutcome] = []

    @property
    def response_length(self) -> int:
        """Sampled plus observed tokens so far."""
        return len(self._mask)

    @property
    def num_turns(self) -> int:
        """Generations so far."""
        return len(self._turns)

    def add_generation(self, generation: RecordedGeneration) -> None:
        """Append a turn's sampled tokens."""
        start = self.response_length
        self.ids.extend(generation.ids)
        self._mask.extend([1] * len(generation.ids))
        self._logprobs.extend(generation.logprobs)
        for span in generation.spans:
            self._add_span(VersionSpan(start + span.start, start + span.end, span.version, span.lineage))
        self._turns.append(
            Turn(
                start=start,
                end=self.response_length,
                finish_reason=generation.finish_reason,
                generate_s=generation.generate_s,
            )
        )
        self._outcomes.append(TurnOutcome())

    def set_outcome(self, outcome: TurnOutcome) -> None:
        """Say what the last turn led to."""
        self._outcomes[-1] = outcome

    def add_observation(self, ids: Sequence[int]) -> None:
        """Append tokens the policy did not sample: tool results, user messages, template text."""
        self.ids.extend(ids)
        self._mask.extend([0] * len(ids))
        self._logprobs.extend([0.0] * len(ids))

    def _add_span(self, span: VersionSpan) -> None:
        if span.start == span.end:
            return
        last = self._spans[-1] if self._spans else None
        if last is not None and (last.end, last.version, last.lineage) == (span.start, span.version, span.lineage):
            self._spans[-1] = VersionSpan(last.start, span.end, span.version, span.lineage)
        else:
            self._spans.append(span)

    def build(self) -> Sample | None:
        """The sample up to its last sampled token; None if nothing was sampled.

        Observations after the last sampled token are cut: nothing was conditioned on them.
        """
        if 1 not in self._mask:
            return None
        end = self.response_length - self._mask[::-1].index(1)
        response = slice(self._prompt_length, self._prompt_length + end)
        return Sample(
            prompt_ids=np.array(self.ids[: self._prompt_length], dtype=np.int32),
            response_ids=np.array(self.ids[response], dtype=np.int32),
            response_mask=np.array(self._mask[:end], dtype=np.uint8),
            response_logprobs=np.minimum(np.array(self._logprobs[:end], dtype=np.float32), np.float32(0.0)),
            version_spans=list(self._spans),
            turns=[
                msgspec.structs.replace(
                    turn, tool_calls=outcome.tool_calls, is_malformed=outcome.is_malformed, tool_s=outcome.tool_s
                )
                for turn, outcome in zip(self._turns, self._outcomes, strict=True)
            ],
        )
