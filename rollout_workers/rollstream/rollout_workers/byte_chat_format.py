"""A chat format without a tokenizer: one id per UTF-8 byte and a few control ids.

For scripted engines, simulations and tests: it keeps every promise of a chat format by construction, because bytes can
never be control ids.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from rollstream.rollout_workers.chat_format import ParsedTurn, tool_schema
from rollstream.rollout_workers.hermes import parse_hermes
from rollstream.schemas.tasks import ChatMessage, ToolSpec

ROLE_IDS = {"system": 256, "user": 257, "assistant": 258, "tool": 259}
"""Opens a message of the role."""
END_OF_MESSAGE_ID = 260
"""Closes any message; the stop token of a turn."""
_LAYOUT = "rollstream bytes 1: message = role id, UTF-8 bytes, end id; tools = system message of JSON lines"


class ByteChatFormat:
    """Ids 0..255 are bytes, 256..259 open a message, 260 closes it."""

    tokenizer_hash: str = hashlib.sha256(_LAYOUT.encode()).hexdigest()
    vocab_size: int = END_OF_MESSAGE_ID + 1

    @property
    def stop_token_ids(self) -> list[int]:
        """The end of a message."""
        return [END_OF_MESSAGE_ID]

    def render_prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSpec]) -> list[int]:
        """The messages after a system message that lists the tools, if there are any."""
        ids: list[int] = []
        if tools:
            lines = [json.dumps(tool_schema(tool), sort_keys=True) for tool in tools]
            ids += _message("system", "\n".join(["<tools>", *lines, "</tools>"]))
        for message in messages:
            ids += _message(message.role, message.content)
        return [*ids, ROLE_IDS["assistant"]]

    def render_tool_results(self, sampled_tail: Sequence[int], results: Sequence[str]) -> list[int]:
        """One tool message per result."""
        ids = _closing(sampled_tail)
        for result in results:
            ids += _message("tool", result)
        return [*ids, ROLE_IDS["assistant"]]

    def render_user(self, sampled_tail: Sequence[int], content: str) -> list[int]:
        """One user message."""
        return [*_closing(sampled_tail), *_message("user", content), ROLE_IDS["assistant"]]

    def decode_turn(self, ids: Sequence[int]) -> str:
        """Bytes that are not UTF-8 become U+FFFD; control ids vanish."""
        return bytes(token for token in ids if token < 256).decode(errors="replace")

    def parse_turn(self, text: str) -> ParsedTurn:
        """The Hermes form."""
        return parse_hermes(text)


def _message(role: str, content: str) -> list[int]:
    return [ROLE_IDS[role], *content.encode(errors="replace"), END_OF_MESSAGE_ID]


def _closing(sampled_tail: Sequence[int]) -> list[int]:
    is_closed = len(sampled_tail) > 0 and sampled_tail[-1] == END_OF_MESSAGE_ID
    return [] if is_closed else [END_OF_MESSAGE_ID]
