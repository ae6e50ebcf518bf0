"""Policies in remote storage, at any fsspec URL: put there, fetched, listed and removed.

A policy there counts once its manifest lies beside its files, so the manifest is written last. What a storage refuses
is tried again a few times before it is an error. Functions block: call them in threads.
"""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (fsspec is not annotated)

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import fsspec
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rollstream.schemas.errors import PolicyFilesError
from rollstream.transport.policy_manifest import (
    ADAPTER_CONFIG,
    MANIFEST,
    Manifest,
    PolicyIdentity,
    PolicyKind,
    explained,
    parse_manifest,
)

logger = logging.getLogger(__name__)

ATTEMPTS = 3
LONGEST_PAUSE_S = 5.0
PARALLEL_FILES = 4
OBJECT_STORES = frozenset({"s3", "gs", "abfs"})
"""They have no directories, and some clients make the bucket of a mistyped URL when asked for one."""
FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Asking again would be answered the same."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy below a root: whole, with a manifest that says which one it is."""

    identity: PolicyIdentity
    uri: str
    manifest_sha256: str
    size_bytes: int
    file_names: tuple[str, ...]

    @property
    def kind(self) -> PolicyKind:
        """``lora`` for an adapter."""
        return "lora" if ADAPTER_CONFIG in self.file_names else "full"


class PolicyStorage:
    """One directory of a storage, by its URL."""

    def __init__(self, uri: str) -> None:
        """Connects to nothing yet.

        Raises:
            PolicyFilesError: nothing can open such a URL.
        """
        self.uri = uri.rstrip("/")
        try:
            self._files, root = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError, OSError) as error:
            raise PolicyFilesError(f"policy URL {uri!r} cannot be opened: {error}") from error
        self._root = str(root).rstrip("/")
        protocol = self._files.protocol
        self._is_object_store = not OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    def put(self, source: Path, manifest: Manifest) -> str:
        """Copy the files of ``manifest`` from ``source``, then the manifest; what a broken copy left is overwritten.

        Returns:
            The sha256 of the manifest.

        Raises:
            PolicyFilesError: another policy lies there, or the storage failed; then there is no manifest.
        """
        body = manifest.encode()
        if (there := self._manifest_body()) is not None:
            if there == body:
                return hashlib.sha256(body).hexdigest()
            raise PolicyFilesError(f"policy {self.uri!r} exists already: publish each version under a new URL")

        def put_file(name: str) -> None:
            path = self._path(name)
            if not self._is_object_store:
                self._files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
            self._files.put_file(str(source / name), path)

        self._each(put_file, [file.name for file in manifest.files], f"{str(source)!r} was not written to")
        self._try(lambda: self._files.pipe_file(self._path(MANIFEST), body), "the manifest was not written to")
        return hashlib.sha256(body).hexdigest()

    def get(self, target: Path, manifest_sha256: str) -> None:
        """Fetch a policy into an empty directory; its files are not verified yet.

        Raises:
            PolicyFilesError: it is not there, is another one, or the storage failed.
        """
        body = self._try(lambda: self._files.cat_file(self._path(MANIFEST)), "was not fetched:")
        (target / MANIFEST).write_bytes(body)

        def get_file(name: str) -> None:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(self._path(name), str(target / name))

        names = [file.name for file in parse_manifest(body, self.uri, expected_sha256=manifest_sha256).files]
        self._each(get_file, names, "was not fetched:")

    def manifest(self) -> tuple[Manifest, str]:
        """What the manifest here says, and its sha256; the files are not looked at.

        Raises:
            PolicyFilesError: there is none, it is damaged, or the storage failed.
        """
        body = self._manifest_body()
        if body is None:
            raise PolicyFilesError(
                f"policy {self.uri!r} has no {MANIFEST}: it was removed, or never published there whole"
            )
        return parse_manifest(body, self.uri), hashlib.sha256(body).hexdigest()

    def list_policies(self) -> list[StoredPolicy]:
        """Policies in the directories directly below, newest first; what says not which policy it is, is not there.

        Raises:
            PolicyFilesError: the storage failed.
        """
        self._files.invalidate_cache()
        pattern = f"{self._root}/*/{MANIFEST}"
        paths = [str(path) for path in self._try(lambda: self._files.glob(pattern), "cannot be listed:")]
        stored = [policy for path in paths if (policy := self._stored(path)) is not None]
        return sorted(stored, key=lambda policy: policy.identity, reverse=True)

    def remove(self, policy: StoredPolicy) -> None:
        """Remove the files of a policy below this root, its manifest last: killed in between, it is still listed.

        Only what the manifest names is removed. Workers that fetch it meanwhile find a file missing and refuse it.

        Raises:
            PolicyFilesError: the storage failed; call it again.
        """
        directory = PurePosixPath(self._path(PurePosixPath(policy.uri).name))
        paths = [*(directory / name for name in policy.file_names), directory / MANIFEST]
        for path in paths:
            self._try(lambda path=path: self._remove_file(str(path)), f"still holds {str(path)!r}:")
        # Object stores have no directories, and what others have put there keeps a local one.
        for parent in sorted({path.parent for path in paths}, key=lambda parent: -len(parent.parts)):
            with suppress(OSError, NotImplementedError):
                self._files.rmdir(str(parent))

    def _remove_file(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(path)

    def _stored(self, manifest_path: str) -> StoredPolicy | None:
        directory = str(PurePosixPath(manifest_path).parent)
        uri = f"{self.uri}/{PurePosixPath(directory).name}"
        try:
            body: bytes = self._files.cat_file(manifest_path)
            manifest = parse_manifest(body, uri)
        except FileNotFoundError:
            return None  # removed meanwhile
        except PolicyFilesError as error:
            logger.warning("%s is left alone: %s", uri, error)
            return None
        if manifest.identity is None:
            return None
        names = tuple(file.name for file in manifest.files)
        return StoredPolicy(manifest.identity, uri, hashlib.sha256(body).hexdigest(), manifest.size_bytes, names)

    def _manifest_body(self) -> bytes | None:
        self._files.invalidate_cache()
        try:
            return self._try(lambda: self._files.cat_file(self._path(MANIFEST)), "cannot be read:")
        except PolicyFilesError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def _each(self, action: Callable[[str], None], names: Iterable[str], failure: str) -> None:
        with ThreadPoolExecutor(PARALLEL_FILES, thread_name_prefix="policy-storage") as pool:
            for done in [pool.submit(self._try, lambda name=name: action(name), failure) for name in names]:
                done.result()

    def _try(self, action: Callable[[], T], failure: str) -> T:
        """Each storage raises errors of its own kind, so here all of them become ours."""
        attempts = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, FINAL)),
        )
        try:
            return attempts(action)
        except RetryError as error:
            last = error.last_attempt.exception()
            assert last is not None
            raise PolicyFilesError(f"policy {self.uri!r} {failure} {explained(last)}") from last
        except FINAL as error:
            raise PolicyFilesError(f"policy {self.uri!r} {failure} {explained(error)}") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
