from __future__ import annotations

import random

import numpy as np
import pytest
from evidence_reading import notes_called
from hypothesis import given
from hypothesis import strategies as st
from notebook_agent import note_taker, order
from tool_history import Page, broken_history, pages_of

from rollstream.rollout_workers.byte_chat_format import ByteChatFormat
from rollstream.rollout_workers.scripted_engine import ScriptPrompt, decode_bytes
from rollstream.schemas.tasks import ChatMessage
from rollstream.schemas.trajectories import Sample, Turn

WHOLE = [Page(["a"], [["a"]]), Page(["b", "c"], [["a", "c", "b"], ["a", "c"]]), Page([], [])]


@given(st.lists(st.integers(0, 3), max_size=5), st.randoms())
def test_what_one_session_says_is_whole(counts: list[int], rng: random.Random) -> None:
    history: list[str] = []
    pages: list[Page] = []
    for number, count in enumerate(counts):
        notes = [f"{number}.{index}" for index in range(count)]
        ran = sorted(notes, key=lambda _: rng.random())
        answers = {note: [*history, *ran[: place + 1]] for place, note in enumerate(ran)}
        pages.append(Page(notes, [answers[note] for note in notes]))
        history += ran
    assert broken_history(pages, is_complete=True) is None


@pytest.mark.parametrize(
    ("pages", "complaint"),
    [
        ([Page(["a"], [["x", "a"]])], "turn 0: after"),
        ([Page(["a"], [["a"]]), Page(["b"], [["a", "a", "b"]])], "turn 1: after"),
        ([Page(["a"], [["a"]]), Page(["b"], [["b"]])], "turn 1: after"),
        ([Page(["a", "b"], [["a"], ["b"]])], "turn 0: after"),
        ([Page(["a", "b"], [["a", "b"], ["a", "b"]])], "the answer to 'a'"),
        ([Page(["a", "b"], [["a"]])], "2 calls, 1 answers"),
        ([Page(["a"], [])], "1 calls, 0 answers"),
    ],
    ids=["phantom", "repeated", "another sandbox", "two sandboxes", "later than it was", "unanswered", "none answered"],
)
def test_what_no_single_session_would_say_is_broken(pages: list[Page], complaint: str) -> None:
    found = broken_history(pages, is_complete=True)
    assert found is not None
    assert complaint in found


def test_the_last_calls_of_a_cut_episode_may_be_unanswered() -> None:
    cut = [*WHOLE[:2], Page(["d"], [])]
    assert broken_history(cut, is_complete=False) is None
    assert broken_history(cut, is_complete=True) is not None


def test_the_pages_of_a_sample_are_read_from_its_tokens() -> None:
    chat = ByteChatFormat()
    prompt = chat.render_prompt([ChatMessage(role="user", content=order(2, 2))], [])
    ids, turns = list(prompt), list[Turn]()
    written: list[list[str]] = []
    for _ in range(3):
        text = note_taker(ScriptPrompt(ids, random.Random(0), decode_bytes))
        sampled = [*text.encode(), *chat.stop_token_ids]
        start = len(ids) - len(prompt)
        ids += sampled
        written.append(notes_called(text))
        turns.append(Turn(start=start, end=start + len(sampled), finish_reason="stop", tool_calls=len(written[-1])))
        if written[-1]:
            ids += chat.render_tool_results(sampled, [f"notes: {' '.join(written[-1])}" for _ in written[-1]])
    response = ids[len(prompt) :]
    sample = Sample(
        prompt_ids=np.array(prompt, np.int32),
        response_ids=np.array(response, np.int32),
        response_mask=np.zeros(len(response), np.uint8),
        response_logprobs=np.zeros(len(response), np.float32),
        version_spans=[],
        turns=turns,
    )
    pages = pages_of(sample, decode_bytes, lambda text, _page, _calls: notes_called(text))
    assert [list(page.notes) for page in pages] == written
    assert [len(page.notes) for page in pages] == [2, 2, 0]
    assert [page.answers for page in pages] == [[written[0]] * 2, [written[1]] * 2, []]


def test_no_two_turns_of_the_script_are_alike() -> None:
    prompt = ByteChatFormat().render_prompt([ChatMessage(role="user", content=order(2, 1))], [])
    rng = random.Random(0)
    assert note_taker(ScriptPrompt(prompt, rng, decode_bytes)) != note_taker(ScriptPrompt(prompt, rng, decode_bytes))
