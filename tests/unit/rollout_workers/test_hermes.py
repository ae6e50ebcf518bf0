from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.rollout_workers.chat_format import ParsedCall, ParsedTurn
from rollstream.rollout_workers.hermes import MAX_DEPTH, MAX_DIGITS, parse_hermes


def call(arguments: str, name: str = "f") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def only_arguments(text: str) -> str:
    parsed = parse_hermes(text)
    assert parsed.kind == "calls", parsed
    assert len(parsed.calls) == 1
    return parsed.calls[0].arguments_json


def reason(text: str) -> str:
    parsed = parse_hermes(text)
    assert parsed.kind == "malformed", parsed
    assert parsed.calls == ()
    return parsed.reason


def test_text_without_tags_asks_for_nothing() -> None:
    assert parse_hermes('The answer is {"name": 18}.') == ParsedTurn("none")
    assert parse_hermes("") == ParsedTurn("none")


def test_a_call_is_returned_as_compact_json() -> None:
    assert parse_hermes("I look.\n" + call('{ "a" : [1, 2.5, null] , "b": "é" }')) == ParsedTurn(
        "calls", (ParsedCall("f", '{"a":[1,2.5,null],"b":"é"}'),)
    )


def test_parallel_calls_keep_their_order() -> None:
    parsed = parse_hermes("".join(call(f'{{"n": {n}}}', name=f"f{n}") for n in range(5)))
    assert [one.name for one in parsed.calls] == ["f0", "f1", "f2", "f3", "f4"]
    assert parsed.calls[3].arguments_json == '{"n":3}'


@pytest.mark.parametrize("tag", ["</tool_call>", "<tool_call>", "<think>", "</think>", "<|im_end|>"])
def test_tags_inside_string_arguments_are_text(tag: str) -> None:
    arguments = json.dumps({"code": f"print('{tag}') # \\\" {tag}"})
    assert json.loads(only_arguments(call(arguments))) == json.loads(arguments)


def test_calls_inside_thinking_are_ignored() -> None:
    inside = "<think>I could " + call("{}", "wrong") + " but no.</think>"
    assert parse_hermes(inside + "Done.") == ParsedTurn("none")
    assert parse_hermes(inside + call("{}", "right")).calls == (ParsedCall("right", "{}"),)
    assert parse_hermes(call("{}", "first") + "<think>" + call("{}", "wrong") + "</think>").calls[0].name == "first"


def test_broken_calls_inside_thinking_are_ignored() -> None:
    assert parse_hermes("<think><tool_call>{</think>" + call("{}")).kind == "calls"


def test_thinking_that_the_prompt_opened_is_thinking() -> None:
    text = "maybe <tool_call> of wrong </think>" + call("{}", "right")
    assert parse_hermes(text, is_thinking=True).calls == (ParsedCall("right", "{}"),)
    assert parse_hermes(call("{}", "wrong") + "</think>" + call("{}", "right")).calls == (ParsedCall("right", "{}"),)


def test_a_call_in_thinking_that_never_ends_is_malformed() -> None:
    assert "think block" in reason("<think>now " + call("{}"))
    assert parse_hermes(call("{}"), is_thinking=True).kind == "malformed"
    assert parse_hermes("<think>I never stop") == ParsedTurn("none")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>{"name": "f", "arguments": {}}', "tag is not closed"),
        ('<tool_call>{"name": "f", "arguments": {"a": "cut', "object is not closed"),
        ("<tool_call>", "not a JSON object"),
        ("</tool_call>", "without an opening one"),
        ('<tool_call>{"name": "f", "arguments": {}}}</tool_call>', "between the JSON and the closing tag"),
        ('<tool_call>{"name": "f", "arguments": {}} ok </tool_call>', "between the JSON and the closing tag"),
        ("<tool_call>f(1)</tool_call>", "not a JSON object"),
        ('<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', "not a JSON object"),
        ('<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>', "invalid JSON"),
        ("<tool_call>{'name': 'f', 'arguments': {}}</tool_call>", "invalid JSON"),
        ('<tool_call>{"name": "f", "arguments": {"a": "raw\nnewline"}}</tool_call>', "invalid JSON"),
        ('<tool_call>{"name": "f"}</tool_call>', "'arguments' is missing"),
        ('<tool_call>{"arguments": {}}</tool_call>', "'name'"),
        ('<tool_call>{"name": "", "arguments": {}}</tool_call>', "'name'"),
        ('<tool_call>{"name": 5, "arguments": {}}</tool_call>', "'name'"),
        (call("[1]"), "not an array"),
        (call("null"), "not null"),
        (call("true"), "not a boolean"),
        (call("7"), "not a number"),
        (call('"[1]"'), "not a JSON object"),
        (call('"{} {}"'), "not one JSON object"),
        (call('{"a": 1, "a": 2}'), "occurs twice"),
        (call('{"a": {"b": 1, "b": 1}}'), "occurs twice"),
        (call('{"a": NaN}'), "NaN is not JSON"),
        (call('{"a": -Infinity}'), "-Infinity is not JSON"),
        (call('{"a": 1e999}'), "out of range"),
        (call('{"a": ' + "7" * (MAX_DIGITS + 1) + "}"), "digits"),
        (call('{"a": ' + "7" * 5000 + "}"), "digits"),
        (call('{"a": 0.' + "7" * 5000 + "}"), "out of range"),
        (call('{"a": "\\ud800"}'), "surrogate"),
        (call('{"\\udfff": 1}'), "surrogate"),
        (call('{"a": "\ud800"}'), "surrogate"),
        (call("{}", name="\\ud800"), "surrogate"),
        (call("[" * 5000 + "]" * 5000), "deeper"),
        (call('{"a": ' * 5000 + "1" + "}" * 5000), "deeper"),
        (call("[" * 5000), "deeper"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(text: str, expected: str) -> None:
    assert expected in reason(text)


def test_one_malformed_call_spoils_the_turn() -> None:
    assert reason(call("{}") + "<tool_call>nonsense</tool_call>")


def test_json_as_deep_as_allowed_is_accepted() -> None:
    depth = MAX_DEPTH - 2
    assert only_arguments(call('{"a": ' + "[" * depth + "]" * depth + "}")) == '{"a":' + "[" * depth + "]" * depth + "}"


def test_arguments_given_as_a_json_string_are_read() -> None:
    assert only_arguments(call(json.dumps(' {"a": "</tool_call>"} '))) == '{"a":"</tool_call>"}'


def test_surrogate_pairs_and_large_integers_survive() -> None:
    assert only_arguments(call('{"a": "\\ud83d\\ude00"}')) == '{"a":"😀"}'
    assert only_arguments(call('{"a": ' + "9" * MAX_DIGITS + "}")) == '{"a":' + "9" * MAX_DIGITS + "}"


@pytest.mark.parametrize(
    "unit",
    [
        "<tool_call>",
        "<tool_call>{",
        '<tool_call>{"',
        "<think>",
        "</think>",
        "<think></think>",
        '\\"',
        "{",
        "[",
        " ",
        "<",
        '"name": ',
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        "<think><tool_call>",
    ],
)
@pytest.mark.parametrize("prefix", ["", "<tool_call>", '<tool_call>{"a": "', "<tool_call>{"])
def test_long_hostile_text_takes_little_time(prefix: str, unit: str) -> None:
    text = prefix + unit * (400_000 // len(unit))
    started = time.process_time()
    parse_hermes(text)
    assert time.process_time() - started < 1.0


PIECES = st.sampled_from(
    [
        *("<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "f", "arguments": {}}', '{"name": "f",'),
        *('"arguments": ', "{", "}", "[", "]", '"', "\\", ",", ":", "\n", " ", "NaN", "\ud800", "1e999", "null"),
    ]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=30).map("".join), st.booleans())
def test_any_text_has_an_outcome_of_exact_types(text: str, is_thinking: bool) -> None:
    parsed = parse_hermes(text, is_thinking=is_thinking)
    assert (parsed.kind == "calls") == bool(parsed.calls)
    assert (parsed.kind == "malformed") == bool(parsed.reason)
    for one in parsed.calls:
        assert type(one.name) is str
        assert one.name
        assert type(json.loads(one.arguments_json.encode())) is dict


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), min_size=1, max_size=4), st.booleans())
def test_every_call_that_can_be_written_is_read_back(arguments: list[dict[str, object]], is_ascii: bool) -> None:
    text = "".join(
        f"<tool_call>\n{json.dumps({'name': 'f', 'arguments': item}, ensure_ascii=is_ascii)}\n</tool_call>\n"
        for item in arguments
    )
    parsed = parse_hermes(text)
    assert parsed.kind == "calls"
    assert [json.loads(one.arguments_json) for one in parsed.calls] == arguments
