from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest

from rollstream.schemas.errors import DataError, SettingsError
from rollstream.schemas.trajectories import Trajectory, Turn
from rollstream.scorers.transcripts import FolderTokenizer, Transcript, final_turn, transcripts_of

Make = Callable[..., Trajectory]


class Characters:
    """Ids are code points; '$' stands for a control token."""

    size = 128

    def decode(self, ids: Sequence[int], *, has_control_tokens: bool) -> str:
        text = "".join(map(chr, ids))
        return text if has_control_tokens else text.replace("$", "")


def test_a_transcript_has_prompt_response_and_what_was_said_after_thinking(make: Make) -> None:
    text = "<think>7*6</think> 42$"
    assert transcripts_of(make(text=text), Characters()) == (Transcript("6*7?", text, "42"),)


def test_who_never_stopped_thinking_has_said_nothing(make: Make) -> None:
    assert transcripts_of(make(text="<think>hm"), Characters())[0].final_answer == ""


@pytest.mark.parametrize(("said", "answer"), [("hm, 4", ""), ("hm</think> 42", "42")])
def test_thinking_that_the_template_has_begun_is_no_answer_either(make: Make, said: str, answer: str) -> None:
    trajectory = make(text=said)
    prompt = np.array([ord(c) for c in "6*7?$<think>\n"], dtype=np.int32)
    sample = msgspec.structs.replace(trajectory.samples[0], prompt_ids=prompt)
    thinking = msgspec.structs.replace(trajectory, samples=[sample])
    assert transcripts_of(thinking, Characters())[0].final_answer == answer


def test_nothing_is_cut_however_long(make: Make) -> None:
    text = "a" * 200_000
    assert transcripts_of(make(text=text), Characters())[0].response == text


def test_the_final_answer_is_that_of_the_last_turn_also_without_turns(make: Make) -> None:
    sample = make(text="call>result>done").samples[0]
    mask = np.ones(16, dtype=np.uint8)
    mask[5:12] = 0
    foreign = msgspec.structs.replace(sample, response_mask=mask, turns=[])
    turns = [Turn(start=0, end=5, finish_reason="stop"), Turn(start=12, end=16, finish_reason="stop")]

    assert final_turn(foreign) == final_turn(msgspec.structs.replace(sample, turns=turns)) == (12, 16)
    assert final_turn(msgspec.structs.replace(foreign, response_mask=np.zeros(16, dtype=np.uint8))) == (0, 0)


def test_ids_of_another_model_are_no_text(make: Make) -> None:
    with pytest.raises(DataError, match=r"token 233 .* set the tokenizer of that model"):
        transcripts_of(make(text="caf\u00e9"), Characters())


def test_a_folder_without_a_tokenizer_is_refused_at_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nothing")
    with pytest.raises(SettingsError, match="holds no tokenizer that loads"):
        FolderTokenizer(folder)
    with pytest.raises(SettingsError, match="is no folder"):
        FolderTokenizer(folder / "missing")
