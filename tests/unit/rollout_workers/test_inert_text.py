from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.inert_text import BREAK, InertText
from rollstream.rollout_workers.tokenizer_files import AddedToken

END = AddedToken(1000, "<end>", is_control=True)
CALL = AddedToken(1001, "<call>", is_control=False)
NESTED = AddedToken(1002, "<end><end>", is_control=True)
BLANKS = AddedToken(1003, "    ", is_control=False)
STRIPPING = AddedToken(1004, "<sep>", is_control=True, strips_left=True, strips_right=True)
TOKENS = [END, CALL, NESTED, BLANKS, STRIPPING]


def characters(text: str) -> list[int]:
    """A model without merges: ids below 1000 for the characters of these tests."""
    return [ord(character) % 1000 for character in text]


INERT = InertText(TOKENS, characters)
PIECES = st.lists(st.sampled_from(["<end>", "<", "end>", "<en", "d>", "<call>", "<sep>", BREAK, "x", "y"])).map("".join)


@given(PIECES, PIECES)
def test_held_texts_yield_no_added_token_wherever_they_stand(text: str, other: str) -> None:
    held = f"<end>{INERT.hold(text)}{INERT.hold(other)}<call>{INERT.hold(text)}<sep>"
    assert [token for token in INERT.encode(held) if token in INERT.marker_ids] == [1000, 1001, 1004]


@given(PIECES)
def test_a_held_text_is_encoded_as_it_was(text: str) -> None:
    assert INERT.encode("<end>" + INERT.hold(text)) == [1000, *characters(text.replace(BREAK, "\ufffd"))]


def test_the_templates_own_tokens_are_found_longest_first() -> None:
    assert INERT.encode("<end><end><end>a<call>") == [1002, 1000, *characters("a"), 1001]


def test_a_template_completes_no_token_with_a_held_text() -> None:
    assert INERT.encode("<" + INERT.hold("end>")) == characters("<end>")
    assert INERT.encode(INERT.hold("<en") + "d>") == characters("<end>")
    assert INERT.encode(INERT.hold("<") + INERT.hold("end>")) == characters("<end>")


def test_tokens_of_white_space_stay_in_foreign_text() -> None:
    assert INERT.encode(INERT.hold("    a")) == [1003, *characters("a")]


def test_tokens_that_swallow_white_space_do_so() -> None:
    assert INERT.encode("a \n<sep>\n b") == [*characters("a"), 1004, *characters("b")]


def test_the_operators_text_keeps_markers_but_not_control_tokens() -> None:
    assert INERT.encode(INERT.hold_controls("<call><end>")) == [1001, *characters("<end>")]


def test_a_marker_that_the_model_knows_as_a_whole_is_spelt_out() -> None:
    def knows_markers(text: str) -> list[int]:
        return [1001] if text == "<call>" else characters(text)

    inert = InertText(TOKENS, knows_markers)
    assert inert.encode("<end>" + inert.hold("<call>")) == [1000, *characters("<call>")]


def test_a_vocabulary_without_added_tokens_leaves_text_alone() -> None:
    assert InertText([], characters).encode("<end>") == characters("<end>")
