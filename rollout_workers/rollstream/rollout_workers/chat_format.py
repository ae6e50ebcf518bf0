"""What turns conversations into token ids and sampled ids into tool calls.

Token in, token out: an episode owns one growing list of ids. A chat format renders the prompt once and then only what
is new; what was sampled is never rendered again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rollstream.schemas.tasks import ChatMessage, ToolSpec


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One tool call the model asked for. ``arguments_json`` is the text of one JSON object, without white space."""

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """What a turn asks for.

    ``calls`` holds the calls in the order of the text and is empty unless ``kind == "calls"``; ``reason`` says what is
    wrong, in words the model may read, and is empty unless ``kind == "malformed"``.
    """

    kind: Literal["none", "calls", "malformed"]
    calls: tuple[ParsedCall, ...] = ()
    reason: str = ""


class ChatFormat(Protocol):
    """Rendering and parsing for one model. Pure and safe to share between episodes.

    Text of users and tools never becomes a control token or another added token of the vocabulary.
    """

    @property
    def tokenizer_hash(self) -> str:
        """Identifies vocabulary, added tokens and template: equal hash, equal meaning of ids."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the highest id this format produces or decodes."""
        ...

    @property
    def stop_token_ids(self) -> list[int]:
        """The ids on which generation of a turn stops, ascending, never empty."""
        ...

    def render_prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[int]:
        """The ids of an initial conversation, ending with the generation prompt. The list is the caller's own.

        Raises:
            DataError: the conversation cannot be rendered.
        """
        ...

    def render_tool_results(self, sampled_tail: Sequence[int], results: Sequence[str]) -> list[int]:
        """The ids that follow a turn and answer its calls, in call order.

        Args:
            sampled_tail: the last ids of the turn (one is enough): decides whether it still has to be closed.
            results: what the model reads, one text per call, at least one.
        """
        ...

    def render_user(self, sampled_tail: Sequence[int], content: str) -> list[int]:
        """The ids that follow a turn and hold one user message."""
        ...

    def decode_turn(self, ids: Sequence[int]) -> str:
        """The text of a turn without its stop token; for parsing and rewards, never to be encoded again.

        It begins with the think tag where the generation prompt has opened one: an answer is what follows its end.
        """
        ...

    def parse_turn(self, text: str) -> ParsedTurn:
        """What the turn asks for. Never raises; takes time linear in the text."""
        ...


def tool_schema(tool: ToolSpec) -> dict[str, Any]:
    """A tool in the form chat templates read."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }
