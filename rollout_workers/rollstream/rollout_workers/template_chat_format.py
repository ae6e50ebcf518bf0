"""The chat format of a model folder: its own template, rendered as deltas.

At load the template is checked against fourteen properties; a folder that fails any is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

from rollstream.rollout_workers.chat_format import ParsedTurn, tool_schema
from rollstream.rollout_workers.hermes import CALL_OPEN, THINK_OPEN, parse_hermes
from rollstream.rollout_workers.inert_text import InertText
from rollstream.rollout_workers.tokenizer_files import ChatTokenizer, TemplateFailure
from rollstream.rollout_workers.turn_continuations import BASE_TOOL, Continuation, TemplateProblem, TurnContinuations
from rollstream.schemas.errors import DataError
from rollstream.schemas.tasks import ChatMessage, ToolSpec

logger = logging.getLogger(__name__)

CACHED_PROMPTS = 256
"""The members of a group share their prompt; tool schemas make rendering it the costliest part."""


class TemplateChatFormat:
    """See ChatFormat. ``load`` is the way to make one; the constructor checks only what it needs itself."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self.tokenizer = tokenizer
        self.inert = InertText(tokenizer.added_tokens, tokenizer.encode_plain)
        self.turns = TurnContinuations(tokenizer, self.inert)
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
        return list(self.turns.stop_ids)

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
        return self._delta(sampled_tail, lambda: self.turns.of_results(results))

    def render_user(self, sampled_tail: Sequence[int], content: str) -> list[int]:
        """See ChatFormat.

        Raises:
            DataError: the template refuses the text.
        """
        return self._delta(sampled_tail, lambda: self.turns.of_user(content))

    def decode_turn(self, ids: Sequence[int]) -> str:
        """See ChatFormat; markers such as think tags stay in the text."""
        is_closed = len(ids) > 0 and ids[-1] in self.turns.stop_ids
        text = self.tokenizer.decode(ids[:-1] if is_closed else ids)
        is_opened = self._opens_thinking and text and not text.lstrip().startswith(THINK_OPEN)
        return f"{THINK_OPEN}{text}" if is_opened else text

    def parse_turn(self, text: str) -> ParsedTurn:
        """The Hermes form; a turn whose generation prompt opens a think block begins inside it."""
        return parse_hermes(text, is_thinking=self._opens_thinking)

    def warn_of_other_call_forms(self) -> None:
        """Log it if the template shows the model tool calls in another form than the one that is parsed."""
        conversation = [{"role": "user", "content": "?"}, self.turns.call_turn([{"value": "!"}])]
        _, opening, call = self.tokenizer.render(conversation, [BASE_TOOL], is_prompt=False).rpartition(CALL_OPEN)
        if parse_hermes(opening + call).kind != "calls":
            logger.warning(
                "the chat template of %s does not write tool calls as JSON between tool_call tags, the only form that "
                "is read from the model's turns",
                self.tokenizer.directory,
            )

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

    def _delta(self, sampled_tail: Sequence[int], render: Callable[[], Continuation]) -> list[int]:
        try:
            return self.turns.delta(sampled_tail, render())
        except (TemplateFailure, TemplateProblem) as failure:
            raise DataError(
                f"the chat template of {str(self.tokenizer.directory)!r} refuses what follows a turn: {failure}"
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

    def _generation_prompt_opens_thinking(self) -> bool:
        try:
            return self.tokenizer.render([{"role": "user", "content": "?"}], []).rstrip().endswith(THINK_OPEN)
        except TemplateFailure as failure:
            raise TemplateProblem("generation_prompt_ends_delta", str(failure)) from failure
