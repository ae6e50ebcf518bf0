"""Where ``search`` finds documents: a corpus in memory, or a service over HTTP.

Documents are untrusted text. The service is asked in the form of Search-R1's retriever: ``{queries, topk,
return_scores}``, answered by ``{result: [[{document: {contents}}, ...], ...]}``; redirects are not followed.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from itertools import islice
from typing import Any, Self, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow.parquet as parquet
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.tool_workers.bm25 import Bm25Index
from rollstream.tool_workers.settings import SearchSettings, ToolWorkerSettings
from rollstream.tool_workers.tool_resources import ToolResource
from rollstream.tool_workers.tool_runner import DaemonThreads

MAX_ANSWER_BYTES = 8 * 1024 * 1024
MAX_REQUESTS = 64
"""To the service, at once."""
CHUNK_BYTES = 64 * 1024
ATTEMPTS = 4
MAX_TITLE_CHARS = 200
PARQUET_ROWS = 1024
TEXT_FIELDS = ("text", "contents", "content")


@dataclass(frozen=True)
class Document:
    """A title, which may be empty, and a text."""

    title: str
    text: str

    def shown(self, number: int, max_chars: int) -> str:
        """As the model reads it."""
        text = self.text if len(self.text) <= max_chars else self.text[:max_chars] + " [...]"
        title = " ".join(self.title[:MAX_TITLE_CHARS].split())
        return f"Doc {number} (Title: {title}):\n{text}" if title else f"Doc {number}:\n{text}"


class DocumentSource(ToolResource):
    """Finds documents."""

    def __init__(self, settings: SearchSettings, documents: Sequence[Document], index: Bm25Index | None) -> None:
        self._settings = settings
        self._documents = documents
        self._index = index
        self._threads = DaemonThreads(MAX_REQUESTS)
        self.max_document_chars = settings.max_document_chars

    @classmethod
    async def open(cls, settings: ToolWorkerSettings) -> Self:
        """Load the corpus, or take note of the service.

        Raises:
            SettingsError: neither or both are set, the corpus cannot be read, or the URL is none of HTTP.
        """
        search = settings.search
        if (search.corpus is None) == (search.url is None):
            raise SettingsError(
                "the tool 'search' needs something to search: set either tool_worker.search.corpus (a file of "
                "documents) or tool_worker.search.url (a retrieval service)"
            )
        if search.url is not None:
            address = urlsplit(search.url)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise SettingsError(
                    f"tool_worker.search.url is {search.url!r}, expected one like http://retriever:8000/retrieve"
                )
            return cls(search, [], None)
        assert search.corpus is not None, "one of the two is set"
        try:
            documents = await asyncio.to_thread(load_documents, search.corpus, search.max_documents)
        except (OSError, ValueError, ImportError, RecursionError) as error:
            raise SettingsError(f"tool_worker.search.corpus {search.corpus!r} cannot be read: {error}") from error
        texts = [f"{document.title} {document.text}" for document in documents]
        return cls(search, documents, await asyncio.to_thread(Bm25Index, texts))

    async def find(self, queries: Sequence[str], top_k: int, *, timeout_s: float) -> list[list[Document]]:
        """Documents for each query, the best first.

        Raises:
            TransientError: the service is down, does not answer within ``timeout_s`` seconds, or not as it should.
        """
        index = self._index
        if index is None:
            try:
                async with asyncio.timeout(timeout_s):
                    return await self._asked(queries, top_k)
            except TimeoutError as error:
                raise TransientError(
                    f"the retrieval service at {self._settings.url!r} did not answer within {timeout_s:g} s"
                ) from error
        found = await asyncio.to_thread(lambda: [index.best(query, top_k) for query in queries])
        return [[self._documents[number] for number, _ in each] for each in found]

    @retry(
        retry=retry_if_exception_type(TransientError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.2, max=5.0),
        reraise=True,
    )
    async def _asked(self, queries: Sequence[str], top_k: int) -> list[list[Document]]:
        url, timeout_s = self._settings.url, self._settings.timeout_s
        assert url is not None, "open() has seen to it"
        body = json.dumps({"queries": list(queries), "topk": top_k, "return_scores": True}).encode()
        content: bytes = await self._threads.run(lambda: posted(url, body, timeout_s=timeout_s))
        return answered_documents(content, len(queries), top_k)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Whoever answers for another place is not asked there."""


_WITHOUT_REDIRECTS = urllib.request.build_opener(_NoRedirects(), urllib.request.ProxyHandler({}))


def posted(url: str, body: bytes, *, timeout_s: float) -> bytes:
    """What a service answers to some JSON. Blocks, but not much longer than ``timeout_s``.

    Raises:
        TransientError: it does not, too late, or too much.
    """
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    content, until = bytearray(), time.monotonic() + timeout_s
    try:
        with _WITHOUT_REDIRECTS.open(request, timeout=timeout_s) as response:
            while chunk := response.read1(CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise TransientError(f"the retrieval service at {url!r} answered over {MAX_ANSWER_BYTES} bytes")
                if time.monotonic() > until:
                    raise TransientError(f"the retrieval service at {url!r} was not done after {timeout_s:g} s")
    except (urllib.error.URLError, HTTPException, OSError) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise TransientError(f"the retrieval service at {url!r} does not answer: {error}") from error
    return bytes(content)


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
    """The documents of a corpus.

    JSONL or Parquet with ``text`` (or ``contents``) and ``title``, a text file with one in each paragraph, or a folder
    of text files, each of them one.

    Raises:
        ValueError: a document has no text, or there are none or too many.
    """
    documents = list(islice(_documents(uri), max_documents + 1))
    if not documents:
        raise ValueError("it holds no documents")
    if len(documents) > max_documents:
        raise ValueError(f"it holds more than max_documents = {max_documents} documents")
    return documents


def _documents(uri: str) -> Iterator[Document]:
    system, path = cast("tuple[Any, str]", cast("Any", fsspec).url_to_fs(uri))
    if system.isdir(path):
        for each in sorted(system.find(path)):
            if each.endswith((".txt", ".md")):
                with system.open(each, "rb") as file:
                    yield Document(each.rpartition("/")[2].rpartition(".")[0], _decoded(file.read()).strip())
        return
    with cast("Any", fsspec).open(uri, "rb") as file:
        if uri.endswith(".parquet"):
            batches: Iterable[Any] = cast("Any", parquet).ParquetFile(file).iter_batches(PARQUET_ROWS)
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from (_document(row, number) for number, row in enumerate(rows))
        elif uri.endswith((".jsonl", ".json")):
            yield from (_document(json.loads(line), number) for number, line in enumerate(file) if line.strip())
        else:
            paragraphs = _decoded(file.read()).split("\n\n")
            yield from (Document("", text) for paragraph in paragraphs if (text := paragraph.strip()))


def _decoded(content: bytes) -> str:
    return content.decode("utf-8", "backslashreplace").replace("\r\n", "\n")


def _document(row: object, number: int) -> Document:
    fields: Mapping[str, Any] = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    text = next((fields[name] for name in TEXT_FIELDS if isinstance(fields.get(name), str)), None)
    if text is None:
        raise ValueError(f"document {number} has none of the fields {list(TEXT_FIELDS)}")
    return Document(str(fields.get("title") or ""), text)
