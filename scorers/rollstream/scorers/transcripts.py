"""What an episode looks like to a reader: its token ids as text. Never shortened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from rollstream.schemas.errors import DataError, SettingsError
from rollstream.schemas.trajectories import Sample, Trajectory

THINK = "<think>"
OPENING_TOKENS = 16
"""Templates that begin the thinking themselves end the context with its tag, which is no longer than this."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The text of one sample.

    Attributes:
        prompt: the whole initial context, control tokens of the chat template included.
        response: everything after it, what tools and users said included, with control tokens.
        final_answer: what the policy said in its last turn after thinking, without control tokens; empty if it never
            stopped thinking.
    """

    prompt: str
    response: str
    final_answer: str


class TokenDecoder(Protocol):
    """From ids to text."""

    @property
    def size(self) -> int:
        """One more than the highest id."""
        ...

    def decode(self, ids: Sequence[int], *, has_control_tokens: bool) -> str:
        """The text of ids, with or without those of control tokens."""
        ...


class FolderTokenizer:
    """The tokenizer in a model's folder, by `transformers` (extra `server`)."""

    def __init__(self, directory: Path) -> None:
        """Load it.

        Raises:
            SettingsError: the folder has none, or `transformers` is not installed.
        """
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise SettingsError(
                f"scorer.tokenizer = {str(directory)!r} needs transformers: pip install 'rollstream[server]'"
            ) from error
        if not directory.is_dir():
            raise SettingsError(f"scorer.tokenizer = {str(directory)!r} is no folder: name the model's folder")
        try:
            tokenizer = cast("Any", AutoTokenizer).from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises anything
            raise SettingsError(
                f"scorer.tokenizer = {str(directory)!r} holds no tokenizer that loads ({type(error).__name__}: "
                f"{error}): copy tokenizer.json and tokenizer_config.json of the model into it"
            ) from error
        self._tokenizer = tokenizer

    @property
    def size(self) -> int:
        """See `TokenDecoder`."""
        return len(self._tokenizer)

    def decode(self, ids: Sequence[int], *, has_control_tokens: bool) -> str:
        """See `TokenDecoder`."""
        return cast(
            "str",
            self._tokenizer.decode(
                list(ids), skip_special_tokens=not has_control_tokens, clean_up_tokenization_spaces=False
            ),
        )


def transcripts_of(trajectory: Trajectory, decoder: TokenDecoder) -> tuple[Transcript, ...]:
    """One per sample. CPU-bound: some 10 ms for 10,000 tokens, so call it in a thread.

    Raises:
        DataError: the trajectory holds ids that the tokenizer does not have: it is another model's.
    """
    return tuple(_transcript(sample, decoder, trajectory) for sample in trajectory.samples)


def _transcript(sample: Sample, decoder: TokenDecoder, trajectory: Trajectory) -> Transcript:
    highest = int(max(sample.prompt_ids.max(), sample.response_ids.max()))
    if highest >= decoder.size:
        raise DataError(
            f"token {highest} of a trajectory of {trajectory.model!r} is not in scorer.tokenizer, which has "
            f"{decoder.size} tokens: set the tokenizer of that model"
        )
    start, end = final_turn(sample)
    last = decoder.decode(sample.response_ids[start:end].tolist(), has_control_tokens=False)
    before = np.concatenate([sample.prompt_ids, sample.response_ids[:start]])[-OPENING_TOKENS:]
    if decoder.decode(before.tolist(), has_control_tokens=True).rstrip().endswith(THINK):
        last = THINK + last
    return Transcript(
        prompt=decoder.decode(sample.prompt_ids.tolist(), has_control_tokens=True),
        response=decoder.decode(sample.response_ids.tolist(), has_control_tokens=True),
        final_answer=spoken(last),
    )


def final_turn(sample: Sample) -> tuple[int, int]:
    """Half-open span in ``response_ids`` of the last generation; of foreign samples the last sampled run."""
    if sample.turns:
        return sample.turns[-1].start, sample.turns[-1].end
    sampled = np.flatnonzero(sample.response_mask)
    if not len(sampled):
        return 0, 0
    end = int(sampled[-1]) + 1
    unsampled = np.flatnonzero(sample.response_mask[:end] == 0)
    return (int(unsampled[-1]) + 1 if len(unsampled) else 0), end


def spoken(text: str) -> str:
    """What a turn says after thinking; empty if it never stopped thinking."""
    return text.rpartition("</think>")[2].partition(THINK)[0].strip()
