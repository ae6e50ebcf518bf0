"""Who writes into the notebook: a script for the scripted engine, and an agent of its own for a real model.

No two generations are alike, also not two of the same turn: what is sampled again is seen to be another.
"""

from __future__ import annotations

import json
import re
import secrets
from hashlib import blake2b

from rollstream.rollout_workers.agents import agent
from rollstream.rollout_workers.episode import Episode
from rollstream.rollout_workers.scripted_engine import ScriptPrompt
from rollstream.rollout_workers.scripts import conversation
from rollstream.rollout_workers.tool_calling import ToolRequest

ORDER = re.compile(r"Write (\d+) pages with (\d+) notes")


def order(pages: int, notes: int) -> str:
    """What the script is asked to do."""
    return f"Write {pages} pages with {notes} notes each."


def note_taker(prompt: ScriptPrompt) -> str:
    """The next page: its calls of the tool ``note``, all in one turn; after the last page, the end."""
    messages = conversation(prompt.ids)
    found = next(match for role, content in messages if role == "user" and (match := ORDER.search(content)))
    pages, notes = int(found[1]), int(found[2])
    page, nonce = sum(role == "assistant" for role, _ in messages), secrets.token_hex(4)
    if page == pages:
        return f"That is all, {nonce}."
    calls = (json.dumps({"name": "note", "arguments": {"text": f"{page}.{number}-{nonce}"}}) for number in range(notes))
    return f"Page {page}, {nonce}.\n" + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def notes_about(turn_text: str, page: int, count: int) -> list[str]:
    """The notes that follow from what a model said."""
    digest = blake2b(turn_text.encode(), digest_size=4).hexdigest()
    return [f"{page}.{number}-{digest}" for number in range(count)]


@agent("notebook")
async def notebook(episode: Episode) -> None:
    """Notes what the model said, page by page; the model's own calls are not heeded."""
    for page in range(episode.random.randint(2, 4)):
        turn = await episode.generate()
        count = 1 + page % 2
        texts = notes_about(turn.text, page, count)
        await episode.call_tools([ToolRequest("note", json.dumps({"text": text})) for text in texts])
    await episode.generate()
