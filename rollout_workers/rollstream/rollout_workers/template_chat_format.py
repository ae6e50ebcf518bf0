"""The chat format of a model folder: its own template, rendered as deltas.

What follows a turn is found by rendering a short conversation whose assistant turn ends with a sentinel; the text from
the stop token after the sentinel on is what the template adds. It is encoded on its own, because a stop token is never
merged with its neighbours. At load the template is checked against fourteen properties; one that fails any is refused.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

from rollstream.rollout_workers.chat_format import ParsedTurn, tool_schema
from rollstream.rollout_workers.hermes import CALL_OPEN, THINK_OPEN, parse_hermes
from rollstream.rollout_workers.inert_text import InertText
from rollstream.rollout_workers.tokenizer_files import ChatTokenizer, TemplateFailure, TemplateMessage
from rollstream.schemas.errors import DataError
from rollstream.schemas.tasks import ChatMessage, ToolSpec

logger = logging.getLogger(__name__)

CACHED_PROMPTS = 256
"""The members of a group share their prompt; tool schemas make rendering it the costliest part."""
BASE_TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a value up.",
        "parameters": {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]},
    },
}
"""Keeps templates in their tools mode while only a delta is rendered; never part of what the model reads."""


class TemplateProblem(Exception):
    """The template cannot be rendered as deltas. ``property_name`` is the property it fails."""

    def __init__(self, property_name: str, seen: str) -> None:
        super().__init__(seen)
        self.property_name = property_name


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the template puts after a turn, from the token that ends the turn on.

    ``text`` is rendered from held texts and begins with ``close``.
    """

    close: str
    text: str


class TemplateChatFormat:
    """See ChatFormat. ``load`` is the way to make one; the constructor checks only what it needs itself."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.inert = InertText(tokenizer.added_tokens, tokenizer.encode_plain)
        self._ids = {token.content: token.id for token in tokenizer.added_tokens}
        self._contents = {token.id: token.content for token in tokenizer.added_tokens}
        self._call_arguments_as_text = self._needs_arguments_as_text()
        self._stop_ids, self.is_closed_by_header = self._find_stops()
        self._stop_pattern = _any_of([self._contents[stop] for stop in self._stop_ids])
        self._opens_thinking = self._generation_prompt_opens_thinking()
        self._prompts: dict[str, list[int]] = {}
        self._hash = tokenizer.hash()

    @classmethod
    def load(cls, tokenizer_dir: Path | str) -> Self:
        """Load the tokenizer and template of a folder and check them. Takes a second or two for a large vocabulary.

        Raises:
            SettingsError: the folder cannot be used; names it, the property that fails and what was seen.
        """
        from rollstream.rollout_workers.template_checks import check_template, refusal

        directory = Path(tokenizer_dir)
        tokenizer = ChatTokenizer(directory)
        try:
            chat = cls(tokenizer)
        except TemplateProblem as problem:
            raise refusal(directory, [problem]) from problem
        check_template(chat)
        chat.warn_of_other_call_forms()
        return chat

    @property
    def tokenizer_hash(self) -> str:
        """sha256 over vocabulary, added tokens and template."""
        return self._hash

    @property
    def vocab_size(self) -> int:
        """Size of the tokenizer, which may be smaller than the model's embedding."""
        return self.tokenizer.size

    @property
    def stop_token_ids(self) -> list[int]:
        """What the model's files name, and the token with which the template closes a turn."""
        return list(self._stop_ids)

    def render_prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[int]:
        """See ChatFormat; remembers the last CACHED_PROMPTS conversations."""
        key = repr((messages, tools))
        if (cached := self._prompts.get(key)) is None:
            cached = self._prompt_ids(messages, tools)
            if len(self._prompts) >= CACHED_PROMPTS:
                del self._prompts[next(iter(self._prompts))]
            self._prompts[key] = cached
        return cached.copy()

    def render_tool_results(self, sampled_tail: Sequence[int], results: Sequence[str]) -> list[int]:
        """See ChatFormat.

        Raises:
            DataError: the template refuses the texts.
        """
        return self._rendered_after(sampled_tail, lambda: self.continuation_of_results(results))

    def render_user(self, sampled_tail: Sequence[int], content: str) -> list[int]:
        """See ChatFormat.

        Raises:
            DataError: the template refuses the text.
        """
        return self._rendered_after(sampled_tail, lambda: self.continuation_of_user(content))

    def decode_turn(self, ids: Sequence[int]) -> str:
        """See ChatFormat; markers such as think tags stay in the text."""
        is_closed = len(ids) > 0 and ids[-1] in self._stop_ids
        return self.tokenizer.decode(ids[:-1] if is_closed else ids)

    def parse_turn(self, text: str) -> ParsedTurn:
        """The Hermes form; a turn whose generation prompt opens a think block begins inside it."""
        return parse_hermes(text, is_thinking=self._opens_thinking)

    def continuation_of_results(self, results: Sequence[str]) -> Continuation:
        """What follows a turn with as many calls.

        Raises:
            ValueError: there is no result.
        """
        if not results:
            raise ValueError("a turn without tool calls has no tool results to render")
        held = [self.inert.hold(result) for result in results]
        sentinel = _sentinel(held)
        calls = self.call_turn([{"value": sentinel}] * len(held))
        messages = [{"role": "user", "content": "?"}, calls, *tool_messages(held)]
        return self.continuation(messages, [BASE_TOOL], sentinel)

    def continuation_of_user(self, content: str) -> Continuation:
        """What follows a turn without calls."""
        held = self.inert.hold(content)
        sentinel = _sentinel([held])
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": sentinel},
            {"role": "user", "content": held},
        ]
        return self.continuation(messages, [BASE_TOOL], sentinel)

    def continuation(
        self, messages: Sequence[TemplateMessage], tools: Sequence[TemplateMessage], sentinel: str
    ) -> Continuation:
        """What the template renders after the turn in which ``sentinel`` occurs last, from its stop token on.

        Raises:
            TemplateProblem: there is no sentinel or no stop token.
            TemplateFailure: the template raises.
        """
        rest = _rest(self.tokenizer.render(messages, tools), sentinel)
        close = self._stop_pattern.search(rest)
        if close is None:
            raise TemplateProblem("stop_tokens_known", f"no known stop token follows the turn: {rest[:120]!r}")
        return Continuation(close.group(), rest[close.start() :])

    def call_turn(self, arguments: Sequence[dict[str, str]], content: str = "") -> TemplateMessage:
        """An assistant message with one call of BASE_TOOL per item."""
        return _call_turn(arguments, content, as_text=self._call_arguments_as_text)

    def id_of(self, added_token: str) -> int:
        """The id of an added token's string."""
        return self._ids[added_token]

    def warn_of_other_call_forms(self) -> None:
        """Log it if the template shows the model tool calls in another form than the one that is parsed."""
        conversation = [{"role": "user", "content": "?"}, self.call_turn([{"value": "!"}])]
        _, opening, call = self.tokenizer.render(conversation, [BASE_TOOL], is_prompt=False).rpartition(CALL_OPEN)
        if parse_hermes(opening + call).kind != "calls":
            logger.warning(
                "the chat template of %s does not write tool calls as JSON between tool_call tags, the only form that "
                "is read from the model's turns",
                self.tokenizer.directory,
            )

    def _rendered_after(self, sampled_tail: Sequence[int], render: Callable[[], Continuation]) -> list[int]:
        try:
            return self.after(sampled_tail, render())
        except (TemplateFailure, TemplateProblem) as failure:
            raise DataError(
                f"{str(self.tokenizer.directory)!r} cannot render what follows a turn: {failure}"
            ) from failure

    def after(self, sampled_tail: Sequence[int], continuation: Continuation) -> list[int]:
        """The ids of a continuation, without its stop token if the turn ends with one."""
        ids = self.inert.encode(continuation.text)
        last = sampled_tail[-1] if sampled_tail else None
        is_closed = last == ids[0] if self.is_closed_by_header else last in self._stop_ids
        return ids[1:] if is_closed else ids

    def _prompt_ids(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[int]:
        held = [self._held_message(message) for message in messages]
        schemas = [self._held_json(tool_schema(tool)) for tool in tools]
        try:
            return self.inert.encode(self.tokenizer.render(held, schemas))
        except TemplateFailure as failure:
            raise DataError(
                f"the chat template of {str(self.tokenizer.directory)!r} refuses the conversation with roles "
                f"{[message.role for message in messages]}: {failure}"
            ) from failure

    def _held_message(self, message: ChatMessage) -> dict[str, str]:
        is_foreign = message.role in ("user", "tool")
        hold = self.inert.hold if is_foreign else self.inert.hold_controls
        return {"role": message.role, "content": hold(message.content)}

    def _held_json(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.inert.hold(value)
        if isinstance(value, dict):
            items = cast("dict[str, Any]", value).items()
            return {self._held_json(key): self._held_json(item) for key, item in items}
        if isinstance(value, list):
            return [self._held_json(item) for item in cast("list[Any]", value)]
        return value

    def _needs_arguments_as_text(self) -> bool:
        conversation = [{"role": "user", "content": "?"}, _call_turn([{"value": "!"}], "", as_text=False)]
        try:
            self.tokenizer.render(conversation, [BASE_TOOL], is_prompt=False)
        except TemplateFailure:
            return True
        return False

    def _find_stops(self) -> tuple[list[int], bool]:
        """The stop ids, and whether a turn is closed only by the header of the next message."""
        stops = set(self.tokenizer.end_token_ids)
        sentinel = _sentinel([])
        conversation = [{"role": "user", "content": "?"}, {"role": "assistant", "content": sentinel}]
        try:
            rest = _rest(self.tokenizer.render(conversation, [], is_prompt=False), sentinel)
        except TemplateFailure as failure:
            raise TemplateProblem(
                "stop_tokens_known", f"the template refuses a plain conversation: {failure}"
            ) from failure
        closing = [self._ids[found] for found in _any_of(list(self._ids)).findall(rest)]
        if closing and stops.isdisjoint(closing):
            stops.add(closing[0])
        if not stops:
            raise TemplateProblem(
                "stop_tokens_known", "neither the folder's files name a stop token nor does the template close a turn"
            )
        return sorted(stops), not closing

    def _generation_prompt_opens_thinking(self) -> bool:
        try:
            return self.tokenizer.render([{"role": "user", "content": "?"}], []).rstrip().endswith(THINK_OPEN)
        except TemplateFailure as failure:
            raise TemplateProblem("generation_prompt_ends_delta", str(failure)) from failure


def tool_messages(results: Sequence[str]) -> list[dict[str, str]]:
    """The answers to the calls of a turn of as many calls."""
    return [
        {"role": "tool", "name": "lookup", "tool_call_id": _call_id(index), "content": result}
        for index, result in enumerate(results)
    ]


def _call_turn(arguments: Sequence[dict[str, str]], content: str, *, as_text: bool) -> TemplateMessage:
    calls = [
        {
            "id": _call_id(index),
            "type": "function",
            "function": {"name": "lookup", "arguments": json.dumps(item) if as_text else item},
        }
        for index, item in enumerate(arguments)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _call_id(index: int) -> str:
    """Nine letters and digits: some templates insist."""
    return f"call{index:05d}"


def _sentinel(contents: Sequence[str]) -> str:
    """A string that none of the contents holds."""
    sentinel = "EndOfTurnHere"
    while any(sentinel in content for content in contents):
        sentinel += "X"
    return sentinel


def _rest(rendered: str, sentinel: str) -> str:
    before, found, rest = rendered.rpartition(sentinel)
    if not found:
        raise TemplateProblem(
            "equals_full_render", f"the template drops the tool calls of a turn: {before or rest[-200:]!r}"
        )
    return rest


def _any_of(strings: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else r"(?!)")
