from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.byte_chat_format import END_OF_MESSAGE_ID, ROLE_IDS, ByteChatFormat
from rollstream.rollout_workers.chat_format import ChatFormat
from rollstream.schemas.tasks import ChatMessage, ToolSpec

CHAT: ChatFormat = ByteChatFormat()
ANY_TEXT = st.text(st.characters(exclude_categories=[]))


def message(role: str, text: str) -> list[int]:
    return [ROLE_IDS[role], *text.encode(), END_OF_MESSAGE_ID]


def test_a_prompt_ends_with_the_generation_prompt() -> None:
    prompt = CHAT.render_prompt(
        [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hi")], []
    )
    assert prompt == [*message("system", "Be brief."), *message("user", "Hi"), ROLE_IDS["assistant"]]


def test_tools_are_shown_to_the_model() -> None:
    tool = ToolSpec(name="calculator", description="Adds.", parameters={"type": "object"})
    prompt = CHAT.render_prompt([ChatMessage(role="user", content="Hi")], [tool])
    assert '"name": "calculator"' in CHAT.decode_turn(prompt)
    assert prompt[-5:] == [*message("user", "Hi"), ROLE_IDS["assistant"]]


@pytest.mark.parametrize(
    ("tail", "closing"), [([104, END_OF_MESSAGE_ID], []), ([104], [END_OF_MESSAGE_ID]), ([], [260])]
)
def test_a_turn_is_closed_exactly_once(tail: list[int], closing: list[int]) -> None:
    assert CHAT.render_tool_results(tail, ["1", "2"]) == [
        *closing, *message("tool", "1"), *message("tool", "2"), ROLE_IDS["assistant"]
    ]  # fmt: skip
    assert CHAT.render_user(tail, "go") == [*closing, *message("user", "go"), ROLE_IDS["assistant"]]


@given(ANY_TEXT)
def test_no_text_becomes_a_control_id(text: str) -> None:
    for ids, controls in (
        (CHAT.render_user([END_OF_MESSAGE_ID], text), 3),
        (CHAT.render_tool_results([END_OF_MESSAGE_ID], [text, text]), 5),
        (CHAT.render_prompt([ChatMessage(role="user", content=text)], []), 3),
    ):
        assert sum(token > 255 for token in ids) == controls
        assert max(ids) < CHAT.vocab_size


@given(st.text())
def test_a_turn_is_decoded_without_its_stop_token(text: str) -> None:
    assert CHAT.decode_turn([*text.encode(), END_OF_MESSAGE_ID]) == text


@given(st.lists(st.integers(0, CHAT.vocab_size - 1)))
def test_any_ids_can_be_decoded(ids: list[int]) -> None:
    assert isinstance(CHAT.decode_turn(ids), str)


def test_turns_are_parsed_in_the_hermes_form() -> None:
    assert CHAT.parse_turn('<tool_call>{"name": "f", "arguments": {}}</tool_call>').calls[0].name == "f"
