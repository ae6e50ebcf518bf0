"""The fourteen properties a chat template must have before anything is rendered with it.

Each check compares what the chat format makes of a made-up conversation with the template's own full render of it, and
says what it saw where they differ. A template that fails one is refused by name; nothing is rendered approximately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rollstream.rollout_workers.inert_text import any_of
from rollstream.rollout_workers.template_chat_format import TemplateChatFormat
from rollstream.rollout_workers.tokenizer_files import TemplateFailure, TemplateMessage
from rollstream.rollout_workers.turn_continuations import Continuation, TemplateProblem, tool_messages
from rollstream.schemas.errors import DataError, SettingsError
from rollstream.schemas.tasks import ChatMessage, ToolSpec

SYSTEM = {"role": "system", "content": "You are a careful clerk."}
QUESTION = {"role": "user", "content": "How many boxes are there?"}
FOLLOW_UP = {"role": "user", "content": "And how many lids?"}
MARK = "ThisTurnEndsHere"
COUNT_TOOL = ToolSpec(
    name="count",
    description="Count things.",
    parameters={"type": "object", "properties": {"thing": {"type": "string"}}},
)
COUNT_SCHEMA = {
    "type": "function",
    "function": {
        "name": COUNT_TOOL.name,
        "description": COUNT_TOOL.description,
        "parameters": COUNT_TOOL.parameters,
    },
}
MARKERS_TRIED_AT_EDGES = 64
"""Vocabularies with thousands of reserved tokens would take seconds to try one by one."""
SEEN_SHOWN = 400
"""Characters of what was seen that an error shows per property."""
THOUGHT = "<think>\nThe boxes are in rows.\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class TemplateProperty:
    """One requirement. ``find_violation`` returns what was seen where it does not hold, else None."""

    name: str
    statement: str
    find_violation: Callable[[TemplateChatFormat], str | None]


def check_template(chat: TemplateChatFormat) -> None:
    """Check all properties.

    Raises:
        SettingsError: names the model folder, every property that fails, and what was seen.
    """
    problems: list[TemplateProblem] = []
    for requirement in PROPERTIES:
        try:
            seen = requirement.find_violation(chat)
        except (TemplateProblem, TemplateFailure, DataError) as error:
            cause = error.__cause__ if isinstance(error, DataError) else error
            name = cause.property_name if isinstance(cause, TemplateProblem) else requirement.name
            problems.append(TemplateProblem(name, str(cause)))
        else:
            if seen is not None:
                problems.append(TemplateProblem(requirement.name, seen))
    if problems:
        raise refusal(chat.tokenizer.directory, problems)


def refusal(directory: Path, problems: Sequence[TemplateProblem]) -> SettingsError:
    """The error for a template with these problems; of several with one property the first is told."""
    seen = {problem.property_name: str(problem) for problem in reversed(problems)}
    failing = [item for item in PROPERTIES if item.name in seen]
    told = "; ".join(f"{item.name} ({item.statement}): {seen[item.name][:SEEN_SHOWN]}" for item in failing)
    return SettingsError(
        f"the chat template of {str(directory)!r} cannot be rendered turn by turn; it fails {told}. Use a template "
        "without this, saved as chat_template.jinja in a copy of the folder"
    )


def _stop_tokens_known(chat: TemplateChatFormat) -> str | None:
    for continuation in (chat.turns.of_results(["3"]), chat.turns.of_user("Go on.")):
        if _id_of(chat, continuation.close) not in chat.stop_token_ids:
            return f"{continuation.close!r} ends a turn but is not a stop token"
    return None


def _prefix_stability(chat: TemplateChatFormat) -> str | None:
    first = _history_of_calls(chat)
    second = [*first, *tool_messages(["3"]), chat.turns.call_turn([{"value": MARK}])]
    result = tool_messages(["4"])
    renders = {
        "after the first turn": _expected(chat, [*first, *result]),
        "after the second turn": _expected(chat, [*second, *result]),
        "on its own": chat.turns.of_results(["4"]),
    }
    return _first_difference(renders)


def _equals_full_render(chat: TemplateChatFormat) -> str | None:
    prompt = chat.tokenizer.render([SYSTEM, QUESTION], [COUNT_SCHEMA])
    ids = chat.render_prompt(_chat_messages(SYSTEM, QUESTION), [COUNT_TOOL])
    if difference := _different_ids(chat, ids, chat.tokenizer.encode(prompt)):
        return f"prompt: {difference}"
    conversation = [*_history_of_calls(chat), *tool_messages(["3\n"])]
    full = chat.tokenizer.render(conversation, [COUNT_SCHEMA])
    expected = _expected(chat, conversation)
    turn = full.removeprefix(prompt).removesuffix(expected.text)
    closed = _id_of(chat, expected.close)
    delta = chat.render_tool_results([closed], ["3\n"])
    if full != prompt + turn + expected.text:  # the template renders an open turn otherwise than a past one
        return _different_ids(chat, [closed, *delta], chat.tokenizer.encode(expected.text))
    # Encoded together: the generation prompt's last newline may merge with the turn's first.
    return _different_ids(chat, [*chat.tokenizer.encode(prompt + turn), closed, *delta], chat.tokenizer.encode(full))


def _close_token_once(chat: TemplateChatFormat) -> str | None:
    expected = _expected(chat, [*_history_of_calls(chat), *tool_messages(["3"])])
    close = _id_of(chat, expected.close)
    delta = chat.render_tool_results([close], ["3"])
    wanted = chat.tokenizer.encode(expected.text).count(close)
    if delta.count(close) + 1 != wanted:
        return f"{expected.close!r} occurs {delta.count(close) + 1} times instead of {wanted}"
    if chat.turns.is_closed_by_header:
        return None
    for stop in chat.stop_token_ids:
        if chat.render_tool_results([stop], ["3"]) != delta:
            return f"a turn that ends with {chat.tokenizer.decode([stop])!r} is closed again"
    return None


def _truncated_turn_is_closed(chat: TemplateChatFormat) -> str | None:
    close = _id_of(chat, chat.turns.of_results(["3"]).close)
    ordinary = chat.tokenizer.encode_plain("a")[-1:]
    delta = chat.render_tool_results(ordinary, ["3"])
    if delta != [close, *chat.render_tool_results([close], ["3"])]:
        return f"the ids after a truncated turn begin with {chat.tokenizer.decode(delta[:3])!r}"
    return None


def _white_space_after_close(chat: TemplateChatFormat) -> str | None:
    expected = _expected(chat, [*_history_of_calls(chat), *tool_messages(["3"])])
    with_close = chat.tokenizer.decode(chat.tokenizer.encode(expected.text))
    delta = chat.tokenizer.decode(chat.render_tool_results([_id_of(chat, expected.close)], ["3"]))
    wanted = _leading_space(with_close.removeprefix(expected.close))
    return None if _leading_space(delta) == wanted else f"{delta[:20]!r} does not begin with {wanted!r}"


def _two_tool_results(chat: TemplateChatFormat) -> str | None:
    calls = chat.turns.call_turn([{"value": MARK}] * 2)
    results = ["seventeen", "twenty-nine"]
    expected = _expected(chat, [SYSTEM, QUESTION, calls, *tool_messages(results)])
    if expected.text.find(results[0]) < 0 or expected.text.find(results[1]) < expected.text.find(results[0]):
        return f"the results are not all there in order: {expected.text[:200]!r}"
    close = _id_of(chat, expected.close)
    return _different_ids(
        chat, [close, *chat.render_tool_results([close], results)], chat.tokenizer.encode(expected.text)
    )


def _user_after_tool_turn(chat: TemplateChatFormat) -> str | None:
    answered = [*_history_of_calls(chat, "rows"), *tool_messages(["3"]), _answer(), FOLLOW_UP]
    plain = [SYSTEM, QUESTION, _answer(), FOLLOW_UP]
    renders = {
        "on its own": chat.turns.of_user(FOLLOW_UP["content"]),
        "after a tool turn": _expected(chat, answered),
        "without tools": chat.turns.after_turn(plain, [], MARK),
    }
    if difference := _first_difference(renders):
        return difference
    expected = renders["after a tool turn"]
    close = _id_of(chat, expected.close)
    delta = chat.render_user([close], FOLLOW_UP["content"])
    return _different_ids(chat, [close, *delta], chat.tokenizer.encode(expected.text))


def _default_system_prompt_once(chat: TemplateChatFormat) -> str | None:
    head = chat.tokenizer.render([QUESTION], []).partition(QUESTION["content"])[0]
    user = chat.turns.of_user(FOLLOW_UP["content"])
    header = user.text.removeprefix(user.close).partition(FOLLOW_UP["content"])[0]
    default = _lines(chat, head) - _lines(chat, header)
    for continuation in (user, chat.turns.of_results(["3"])):
        if repeated := default & _lines(chat, continuation.text):
            return f"{sorted(repeated)} occurs in {continuation.text[:160]!r}"
    return None


def _no_bos_in_delta(chat: TemplateChatFormat) -> str | None:
    bos = chat.tokenizer.bos_id
    prompt = chat.render_prompt(_chat_messages(SYSTEM, QUESTION), [])
    if bos is None or prompt.count(bos) > 1:  # a header, then, and equals_full_render speaks for it
        return None
    end = chat.stop_token_ids[:1]
    for delta in (chat.render_tool_results(end, ["3"]), chat.render_user(end, "Go on.")):
        if bos in delta:
            return f"{chat.tokenizer.decode([bos])!r} occurs in {chat.tokenizer.decode(delta)[:120]!r}"
    return None


def _thinking_kept(chat: TemplateChatFormat) -> str | None:
    turn = THOUGHT + "There are three."
    close = chat.stop_token_ids[0]
    decoded = chat.decode_turn([*chat.tokenizer.encode(turn), close])
    if decoded.strip() != turn.strip():
        return f"the turn {turn!r} is read as {decoded!r}"
    thinking = [SYSTEM, QUESTION, chat.turns.call_turn([{"value": MARK}], THOUGHT), *tool_messages(["3"])]
    return _first_difference({"after thinking": _expected(chat, thinking), "on its own": chat.turns.of_results(["3"])})


def _tool_text_is_inert(chat: TemplateChatFormat) -> str | None:
    end = chat.stop_token_ids[:1]
    wanted = _markers(chat, chat.render_tool_results(end, ["x"]))
    for text in _hostile_texts(chat):
        if extra := _extra_markers(chat, chat.render_tool_results(end, [text]), wanted):
            return f"a tool's text becomes {extra}"
    return None


def _user_text_is_inert(chat: TemplateChatFormat) -> str | None:
    end = chat.stop_token_ids[:1]
    follow_up = _markers(chat, chat.render_user(end, "x"))
    prompt = _markers(chat, chat.render_prompt([ChatMessage(role="user", content="x")], []))
    for text in _hostile_texts(chat):
        ids = chat.render_prompt([ChatMessage(role="user", content=text)], [])
        if extra := _extra_markers(chat, chat.render_user(end, text), follow_up) or _extra_markers(chat, ids, prompt):
            return f"a user's text becomes {extra}"
    return None


def _generation_prompt_ends_delta(chat: TemplateChatFormat) -> str | None:
    conversation = [*_history_of_calls(chat), *tool_messages(["3"])]
    open_text = chat.tokenizer.render(conversation, [COUNT_SCHEMA])
    closed_text = chat.tokenizer.render(conversation, [COUNT_SCHEMA], is_prompt=False)
    if not open_text.startswith(closed_text):
        return f"asking for it changes the text before it: {open_text[-80:]!r}, {closed_text[-80:]!r}"
    prompt = open_text.removeprefix(closed_text)
    question = chat.tokenizer.render([SYSTEM, QUESTION], [], is_prompt=False)
    spoken = chat.tokenizer.render([SYSTEM, QUESTION, _answer()], [], is_prompt=False)
    header = spoken.removeprefix(question).partition(MARK)[0]
    if not prompt and header.strip():
        return f"there is none, but an assistant's turn begins with {header!r}"
    for continuation in (chat.turns.of_results(["3"]), chat.turns.of_user("Go on.")):
        if not continuation.text.endswith(prompt):
            return f"{continuation.text[-80:]!r} does not end with {prompt!r}"
    return None


PROPERTIES: tuple[TemplateProperty, ...] = (
    TemplateProperty(
        "stop_tokens_known", "the token that ends a turn is known and generation stops on it", _stop_tokens_known
    ),
    TemplateProperty(
        "prefix_stability", "what follows a turn does not depend on the turns before it", _prefix_stability
    ),
    TemplateProperty(
        "equals_full_render", "prompt, turn and delta are the ids of the full render", _equals_full_render
    ),
    TemplateProperty("close_token_once", "a turn's close token is neither doubled nor missing", _close_token_once),
    TemplateProperty("truncated_turn_is_closed", "a truncated turn gets its close token", _truncated_turn_is_closed),
    TemplateProperty(
        "white_space_after_close", "white space after the close token belongs to the delta", _white_space_after_close
    ),
    TemplateProperty("two_tool_results", "two results in a row are rendered as in the full render", _two_tool_results),
    TemplateProperty(
        "user_after_tool_turn", "a user message can follow, also after a tool turn", _user_after_tool_turn
    ),
    TemplateProperty(
        "default_system_prompt_once", "a default system prompt is not inserted again", _default_system_prompt_once
    ),
    TemplateProperty("no_bos_in_delta", "a delta has no beginning-of-text token", _no_bos_in_delta),
    TemplateProperty("thinking_kept", "a turn's thinking is kept and changes nothing after it", _thinking_kept),
    TemplateProperty("tool_text_is_inert", "text of tools yields no control or added token", _tool_text_is_inert),
    TemplateProperty("user_text_is_inert", "text of users yields no control or added token", _user_text_is_inert),
    TemplateProperty(
        "generation_prompt_ends_delta", "the generation prompt ends prompt and delta", _generation_prompt_ends_delta
    ),
)


def _history_of_calls(chat: TemplateChatFormat, argument: str = MARK) -> list[TemplateMessage]:
    return [SYSTEM, QUESTION, chat.turns.call_turn([{"value": argument}])]


def _answer() -> TemplateMessage:
    return {"role": "assistant", "content": MARK}


def _chat_messages(*messages: dict[str, str]) -> list[ChatMessage]:
    return [
        ChatMessage(role="system" if message is SYSTEM else "user", content=message["content"]) for message in messages
    ]


def _expected(chat: TemplateChatFormat, conversation: Sequence[TemplateMessage]) -> Continuation:
    return chat.turns.after_turn(conversation, [COUNT_SCHEMA], MARK)


def _first_difference(renders: dict[str, Continuation]) -> str | None:
    (first, reference), *others = renders.items()
    for name, render in others:
        if render != reference:
            return f"{first} {reference.text[:160]!r}, {name} {render.text[:160]!r}"
    return None


def _different_ids(chat: TemplateChatFormat, ids: list[int], wanted: list[int]) -> str | None:
    if ids == wanted:
        return None
    pairs = zip(ids, wanted, strict=False)
    start = next((i for i, (left, right) in enumerate(pairs) if left != right), min(len(ids), len(wanted)))
    shown, expected = ids[start : start + 12], wanted[start : start + 12]
    decode = chat.tokenizer.decode
    return f"from token {start} on {decode(shown)!r} {shown} instead of {decode(expected)!r} {expected}"


def _id_of(chat: TemplateChatFormat, added_token: str) -> int:
    return next(token.id for token in chat.tokenizer.added_tokens if token.content == added_token)


def _leading_space(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]


def _lines(chat: TemplateChatFormat, text: str) -> set[str]:
    runs = any_of(token.content for token in chat.tokenizer.added_tokens).split(text)
    return {line.strip() for run in runs for line in run.splitlines() if line.strip()}


def _hostile_texts(chat: TemplateChatFormat) -> list[str]:
    markers = [token.content for token in chat.tokenizer.added_tokens if token.id in chat.inert.marker_ids]
    edges = [edge for marker in markers[:MARKERS_TRIED_AT_EDGES] for edge in (marker[1:], marker[:-1])]
    return ["".join(markers), " ".join(markers), *edges]


def _markers(chat: TemplateChatFormat, ids: Sequence[int]) -> list[int]:
    return [token for token in ids if token in chat.inert.marker_ids]


def _extra_markers(chat: TemplateChatFormat, ids: Sequence[int], wanted: list[int]) -> str | None:
    found = _markers(chat, ids)
    return None if found == wanted else f"control or added tokens: {chat.tokenizer.decode(found)[:200]!r}"
