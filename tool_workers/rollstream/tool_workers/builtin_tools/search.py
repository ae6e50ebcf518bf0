"""The tool ``search``: documents out of a corpus of the worker's, or out of a retrieval service.

Runs in the worker, without a sandbox: what is found is text, and goes to the model like any other answer.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from rollstream.tool_workers.document_sources import DocumentSource
from rollstream.tool_workers.functions import TimeLimit, tool

SHARE_OF_TIME = 0.9
"""What the service is given of a call's time: that it is slow must not become a time-out, which a model would read."""
Query = Annotated[str, Meta(min_length=1, max_length=2000)]


@tool(timeout_s=60.0)
async def search(  # noqa: D417 -- what the model reads
    source: DocumentSource,
    limit: TimeLimit,
    query: Query | Annotated[list[Query], Meta(min_length=1, max_length=8)],
    top_k: Annotated[int, Meta(ge=1, le=20)] = 3,
) -> str:
    """Search documents. Returns the passages that fit best.

    Args:
        query: What to look for, or several such texts.
        top_k: How many documents per query.
    """
    queries = [query] if isinstance(query, str) else query
    answers = await source.find(queries, top_k, timeout_s=limit.timeout_s * SHARE_OF_TIME)
    shown = [
        "\n\n".join(each.shown(number, source.max_document_chars) for number, each in enumerate(found, 1))
        or "no documents found"
        for found in answers
    ]
    if len(queries) == 1:
        return shown[0]
    numbered = enumerate(zip(queries, shown, strict=True), 1)
    return "\n\n".join(f"Query {number} ({text}):\n{found}" for number, (text, found) in numbered)
