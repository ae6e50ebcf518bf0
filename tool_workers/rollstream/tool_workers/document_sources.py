"""Where ``search`` finds documents: a corpus in memory, or a service over HTTP.

Documents are untrusted text. The service is asked in the form of Search-R1's retriever: ``{queries, topk,
return_scores}``, answered by ``{result: [[{document: {contents}}, ...], ...]}``; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Self, cast

import fsspec
import pyarrow.parquet as parquet
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.tool_workers.bm25 import Bm25Index
from rollstream.tool_workers.settings import SearchSettings, ToolWorkerSettings
from rollstream.tool_workers.tool_resources import ToolResource

MAX_ANSWER_BYTES = 8 * 1024 * 1024
ATTEMPTS = 4
TEXT_FIELDS = ("text", "contents", "content")


@dataclass(frozen=True)
class Document:
    """A title, which may be empty, and a text."""

    title: str
    text: str

    def shown(self, number: int, max_chars: int) -> str:
        """As the model reads it."""
        text = self.text if len(self.text) <= max_chars else self.text[:max_chars] + " [...]"
        return f"Doc {number} (Title: {self.title}):\n{text}" if self.title else f"Doc {number}:\n{text}"


class DocumentSource(ToolResource):
    """Finds documents."""

    def __init__(self, settings: SearchSettings, documents: Sequence[Document], index: Bm25Index | None) -> None:
        self._settings = settings
        self._documents = documents
        self._index = index
        self.max_document_chars = settings.max_document_chars

    @classmethod
    async def open(cls, settings: ToolWorkerSettings) -> Self:
        """Load the corpus, or take note of the service.

        Raises:
            SettingsError: neither or both are set, or the corpus cannot be read.
        """
        search = settings.search
        if (search.corpus is None) == (search.url is None):
            raise SettingsError(
                "the tool 'search' needs something to search: set either tool_worker.search.corpus (a file of "
                "documents) or tool_worker.search.url (a retrieval service)"
            )
        if search.corpus is None:
            return cls(search, [], None)
        try:
            documents = await asyncio.to_thread(load_documents, search.corpus, search.max_documents)
        except (OSError, ValueError, ImportError) as error:
            raise SettingsError(f"tool_worker.search.corpus {search.corpus!r} cannot be read: {error}") from error
        texts = [f"{document.title} {document.text}" for document in documents]
        return cls(search, documents, await asyncio.to_thread(Bm25Index, texts))

    async def find(self, queries: Sequence[str], top_k: int) -> list[list[Document]]:
        """Documents for each query, the best first.

        Raises:
            TransientError: the service is down, or does not answer as it should.
        """
        if self._index is None:
            return await asyncio.to_thread(self._asked, queries, top_k)
        index = self._index
        found = await asyncio.to_thread(lambda: [index.best(query, top_k) for query in queries])
        return [[self._documents[number] for number, _ in each] for each in found]

    @retry(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=5.0),
        reraise=True,
    )
    def _asked(self, queries: Sequence[str], top_k: int) -> list[list[Document]]:
        url = self._settings.url
        assert url is not None, "open() has seen to it"
        body = json.dumps({"queries": list(queries), "topk": top_k, "return_scores": True}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        try:
            with _WITHOUT_REDIRECTS.open(request, timeout=self._settings.timeout_s) as response:
                content = response.read(MAX_ANSWER_BYTES + 1)
        except (urllib.error.URLError, HTTPException, OSError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise TransientError(f"the retrieval service at {url!r} does not answer: {error}") from error
        if len(content) > MAX_ANSWER_BYTES:
            raise TransientError(f"the retrieval service at {url!r} answered more than {MAX_ANSWER_BYTES} bytes")
        return answered_documents(content, len(queries), top_k)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Whoever answers for another place is not asked there."""


_WITHOUT_REDIRECTS = urllib.request.build_opener(_NoRedirects(), urllib.request.ProxyHandler({}))


def answered_documents(content: bytes, queries: int, top_k: int) -> list[list[Document]]:
    """The documents of a service's answer.

    Raises:
        TransientError: it is none.
    """
    try:
        result: list[list[Any]] = json.loads(content)["result"]
        if len(result) != queries:
            raise ValueError(f"{len(result)} results for {queries} queries")
        return [[_answered(each) for each in found[:top_k]] for found in result]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TransientError(f"the retrieval service's answer is malformed: {error!r}") from error


def _answered(found: Mapping[str, Any]) -> Document:
    """Its contents begin with the title in quotes, on a line of its own."""
    document: Mapping[str, Any] = found.get("document", found)
    text = str(next(document[name] for name in ("contents", "text", "content") if name in document))
    first, _, rest = text.partition("\n")
    if "title" in document:
        return Document(str(document["title"]), text)
    return Document(first.strip('"'), rest) if first.startswith('"') and rest else Document("", text)


def load_documents(uri: str, max_documents: int) -> list[Document]:
    """JSONL or Parquet with ``text`` (or ``contents``) and ``title``, or a text file with a document per paragraph.

    Raises:
        ValueError: a document has no text, or there are none or too many.
    """
    source: Any = cast("Any", fsspec).open(uri, "rb")
    with source as file:
        if uri.endswith(".parquet"):
            rows: list[dict[str, Any]] = cast("Any", parquet).read_table(file).to_pylist()
            documents = [_document(row, number) for number, row in enumerate(rows)]
        elif uri.endswith((".jsonl", ".json")):
            documents = [_document(json.loads(line), number) for number, line in enumerate(file) if line.strip()]
        else:
            text = file.read().decode("utf-8", "backslashreplace")
            documents = [Document("", paragraph.strip()) for paragraph in text.split("\n\n") if paragraph.strip()]
    if not 0 < len(documents) <= max_documents:
        raise ValueError(f"it holds {len(documents)} documents, at least 1 and at most {max_documents} are wanted")
    return documents


def _document(row: Mapping[str, Any], number: int) -> Document:
    text = next((row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str)), None)
    if text is None:
        raise ValueError(f"document {number} has none of the fields {list(TEXT_FIELDS)}")
    return Document(str(row.get("title") or ""), text)
