"""What a chat template puts after a turn, found without rendering the conversation again.

A short conversation is rendered whose assistant turn holds a sentinel; the text from the stop token after the sentinel
on is what follows any turn. Only that text matters: templates rewrite what stands before it. It is encoded on its own,
because a stop token is never merged with its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollstream.rollout_workers.inert_text import InertText, any_of
from rollstream.rollout_workers.tokenizer_files import ChatTokenizer, TemplateFailure, TemplateMessage

BASE_TOOL: TemplateMessage = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Look a value up.",
        "parameters": {"type": "object", "properties": {"value": {"type": "string"}}, "required": ["value"]},
    },
}
"""Keeps templates in their tools mode while only a delta is rendered; never part of what the model reads."""
_QUESTION = {"role": "user", "content": "?"}


class TemplateProblem(Exception):
    """The template cannot be rendered as deltas. ``property_name`` is the property it fails."""

    def __init__(self, property_name: str, seen: str) -> None:
        super().__init__(seen)
        self.property_name = property_name


@dataclass(frozen=True, slots=True)
class Continuation:
    """Text after a turn, rendered from held texts; begins with ``close``, the string of the turn's stop token."""

    close: str
    text: str


class TurnContinuations:
    """The continuations of one template.

    Attributes:
        stop_ids: what ends a turn, ascending.
        is_closed_by_header: turns have no close token; their stop token opens the next message, as in GLM.

    Raises:
        TemplateProblem: no stop token can be found.
    """

    def __init__(self, tokenizer: ChatTokenizer, inert: InertText) -> None:
        self._tokenizer = tokenizer
        self._inert = inert
        self._ids = {token.content: token.id for token in tokenizer.added_tokens}
        self._call_arguments_as_text = not self._accepts([{"value": "!"}], as_text=False)
        self._one_call_only = not self._accepts([{"value": "!"}] * 2, as_text=self._call_arguments_as_text)
        self.stop_ids, self.is_closed_by_header = self._find_stops()
        self._stop = any_of([token.content for token in tokenizer.added_tokens if token.id in self.stop_ids])

    def of_results(self, results: Sequence[str]) -> Continuation:
        """What follows a turn with as many calls; see ``after_turn``.

        Raises:
            ValueError: there is no result.
        """
        if not results:
            raise ValueError("a turn without tool calls has no tool results to render")
        held = [self._inert.hold(result) for result in results]
        sentinel = _sentinel(held)
        calls = self.call_turn([{"value": sentinel}] * len(held))
        return self.after_turn([_QUESTION, calls, *tool_messages(held)], [BASE_TOOL], sentinel)

    def of_user(self, content: str) -> Continuation:
        """What follows a turn without calls; see ``after_turn``."""
        held = self._inert.hold(content)
        sentinel = _sentinel([held])
        messages = [_QUESTION, {"role": "assistant", "content": sentinel}, {"role": "user", "content": held}]
        return self.after_turn(messages, [BASE_TOOL], sentinel)

    def after_turn(
        self, messages: Sequence[TemplateMessage], tools: Sequence[TemplateMessage], sentinel: str
    ) -> Continuation:
        """What the template renders after the turn in which ``sentinel`` occurs last, from its stop token on.

        Raises:
            TemplateProblem: there is no sentinel or no stop token.
            TemplateFailure: the template raises.
        """
        rest = _rest(self._tokenizer.render(messages, tools), sentinel)
        close = self._stop.search(rest)
        if close is None:
            raise TemplateProblem("stop_tokens_known", f"no known stop token follows the turn: {rest[:120]!r}")
        return Continuation(close.group(), rest[close.start() :])

    def delta(self, sampled_tail: Sequence[int], continuation: Continuation) -> list[int]:
        """The ids of a continuation, without its stop token if the turn already ends with one."""
        ids = self._inert.encode(continuation.text)
        last = sampled_tail[-1] if sampled_tail else None
        is_closed = last == ids[0] if self.is_closed_by_header else last in self.stop_ids
        return ids[1:] if is_closed else ids

    def call_turn(self, arguments: Sequence[Mapping[str, str]], content: str = "") -> TemplateMessage:
        """An assistant message with one call of BASE_TOOL per item; only the last where templates refuse several."""
        shown = arguments[-1:] if self._one_call_only else arguments
        return _call_turn(shown, content, as_text=self._call_arguments_as_text)

    def _accepts(self, arguments: Sequence[Mapping[str, str]], *, as_text: bool) -> bool:
        try:
            self._tokenizer.render([_QUESTION, _call_turn(arguments, "", as_text=as_text)], [BASE_TOOL])
        except TemplateFailure:
            return False
        return True

    def _find_stops(self) -> tuple[list[int], bool]:
        stops = set(self._tokenizer.end_token_ids)
        sentinel = _sentinel([])
        plain = [_QUESTION, {"role": "assistant", "content": sentinel}]
        try:
            rest = _rest(self._tokenizer.render(plain, [], is_prompt=False), sentinel)
        except TemplateFailure as failure:
            raise TemplateProblem("stop_tokens_known", f"it refuses a plain conversation: {failure}") from failure
        closing = [self._ids[found] for found in any_of(list(self._ids)).findall(rest)]
        if closing and stops.isdisjoint(closing):
            stops.add(closing[0])
        if not stops:
            raise TemplateProblem(
                "stop_tokens_known", "neither the folder's files name a stop token nor does the template close a turn"
            )
        return sorted(stops), not closing


def tool_messages(results: Sequence[str]) -> list[TemplateMessage]:
    """The answers to the calls of a turn of as many calls."""
    return [
        {"role": "tool", "name": "lookup", "tool_call_id": _call_id(index), "content": result}
        for index, result in enumerate(results)
    ]


def _call_turn(arguments: Sequence[Mapping[str, str]], content: str, *, as_text: bool) -> TemplateMessage:
    calls: list[dict[str, Any]] = [
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
    _, found, rest = rendered.rpartition(sentinel)
    if not found:
        raise TemplateProblem("equals_full_render", f"the template drops the tool calls of a turn: {rest[-200:]!r}")
    return rest
