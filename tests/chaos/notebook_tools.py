"""The tool of the chaos runs: its answers are the whole history of its session, so that no missing, repeated or foreign
call goes unseen.
"""

from __future__ import annotations

import asyncio
import random
from weakref import WeakKeyDictionary

from rollstream.tool_workers.functions import tool
from rollstream.tool_workers.sandbox.sandbox import Sandbox

LONGEST_PAUSE_S = 0.1

_notes: WeakKeyDictionary[Sandbox, list[str]] = WeakKeyDictionary()


@tool(stateful=True)
async def note(sandbox: Sandbox, text: str) -> str:
    """Write a note into the notebook and read the whole notebook.

    Args:
        text: one word.
    """
    await asyncio.sleep(random.uniform(0, LONGEST_PAUSE_S))
    notes = _notes.setdefault(sandbox, [])
    notes.append(text)
    return f"notes: {' '.join(notes)}"
