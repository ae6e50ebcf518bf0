"""Where parts lie: put there once, never changed; the first one of a name stays. Blocks: call it in threads.

A local part is written under another name, synced, and linked to its own, which fails where that is taken. An object
store is asked to create and not to overwrite (S3: ``If-None-Match``); whether it heeds that is tried out when an
archive is opened. Crash: a local file may be left in ``_unfinished``; it is removed a day later.
"""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (fsspec is not annotated)

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar
from uuid import uuid4

import fsspec
import msgspec
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rollstream.schemas.errors import InvalidMessageError, SettingsError, TransientError
from rollstream.trainers.archive.part_encoding import read_header
from rollstream.trainers.archive.parts import (
    MANIFEST_NAME,
    ArchiveManifest,
    PartHeader,
    check_manifest,
    first_offset_of,
    part_name,
    partition_directory,
)
from rollstream.trainers.archive.settings import PartFormat

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS: Final = 5
LONGEST_PAUSE_S: Final = 10.0
LOCAL: Final = frozenset({"file", "local"})
CREATING: Final = frozenset({"s3", "s3a", "memory"})
"""Storage, beside local files, that can create without overwriting, and of which that was tested."""
UNFINISHED: Final = "_unfinished"
UNFINISHED_S: Final = 86_400.0


class PartStorage:
    """One archive, by its URL."""

    def __init__(self, target: str, file_format: PartFormat) -> None:
        """Touches nothing yet.

        Raises:
            SettingsError: nothing can open such a URL, or it cannot create without overwriting.
        """
        self.target = target
        self._format: PartFormat = file_format
        try:
            self._files, root = fsspec.core.url_to_fs(target)
        except (ImportError, ValueError, OSError) as error:
            raise SettingsError(f"the archive {target!r} cannot be opened: {error}") from error
        self._root = str(root).rstrip("/")
        protocol = self._files.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._is_local = not LOCAL.isdisjoint(protocols)
        if not self._is_local and CREATING.isdisjoint(protocols):
            raise SettingsError(
                f"the archive {target!r}: {sorted(protocols)} is not known to create files without overwriting them, "
                "so parts could be lost; use a local directory or s3://, or 'rollstream trajectories export'"
            )

    def open(self, wanted: ArchiveManifest) -> ArchiveManifest:
        """Begin the archive, or find the one that is there.

        Raises:
            SettingsError: it is another archive, or the storage overwrites what it should create.
            TransientError: the storage failed.
        """
        self._put_new(MANIFEST_NAME, msgspec.json.encode(wanted))
        body = self._try(lambda: self._files.cat_file(self._path(MANIFEST_NAME)), "cannot be read")
        try:
            manifest = msgspec.json.decode(body, type=ArchiveManifest)
        except msgspec.MsgspecError as error:
            raise SettingsError(f"{self.target!r} is no archive: {MANIFEST_NAME} is damaged: {error}") from error
        check_manifest(manifest, wanted, self.target)
        if self._put_new(MANIFEST_NAME, body):
            raise SettingsError(
                f"the storage of {self.target!r} overwrites what it was asked to create (S3: If-None-Match is not "
                "heeded), so two archivers could overwrite each other: use another storage"
            )
        if self._is_local:
            self._sweep()
        return manifest

    def put(self, header: PartHeader, body: bytes) -> bool:
        """Put a part there; False: one of its name is there already, which is left as it is.

        Also False if this one is there because the answer to an earlier try was lost: look what ``newest`` says.

        Raises:
            TransientError: the storage failed; whether the part is there is not known.
        """
        return self._put_new(part_name(header.partition, header.first_offset, self._format), body)

    def newest(self, partition: int) -> PartHeader | None:
        """The header of the part behind which the next one belongs; None: there is none.

        Raises:
            InvalidMessageError: the newest part is damaged.
            TransientError: the storage failed.
        """
        directory = partition_directory(partition)
        self._files.invalidate_cache()
        paths = self._try(lambda: self._listed(self._path(directory)), "cannot be listed")
        names = [f"{directory}/{path.rsplit('/', 1)[-1]}" for path in paths]
        offsets = {offset: name for name in names if (offset := first_offset_of(name)) is not None}
        if not offsets:
            return None
        path = self._path(offsets[max(offsets)])

        def read() -> PartHeader:
            size_bytes = self._files.info(path)["size"]
            return read_header(
                lambda start, end: self._files.cat_file(path, start=start, end=end), size_bytes, self._format
            )

        try:
            return self._try(read, "cannot be read")
        except InvalidMessageError as error:
            raise InvalidMessageError(
                f"{path!r}, the newest part of partition {partition}, cannot be read: {error}; remove it, and it is "
                "written again as long as the topic has its records"
            ) from error

    def _listed(self, directory: str) -> list[str]:
        try:
            return [str(path) for path in self._files.ls(directory, detail=False)]
        except FileNotFoundError:
            return []

    def _put_new(self, name: str, body: bytes) -> bool:
        path = self._path(name)

        def create() -> bool:
            try:
                if self._is_local:
                    self._link_new(Path(path), body)
                else:
                    self._files.pipe_file(path, body, mode="create")
            except FileExistsError:
                return False
            except OSError:
                # Refused, or failed after all: what is there now tells.
                self._files.invalidate_cache()
                if self._files.exists(path):
                    return False
                raise
            return True

        return self._try(create, f"was not written to ({name})")

    def _link_new(self, path: Path, body: bytes) -> None:
        if path.exists():
            raise FileExistsError(path)
        unfinished = Path(self._path(UNFINISHED)) / uuid4().hex
        for directory in (unfinished.parent, path.parent):
            directory.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("xb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(unfinished)
        finally:
            unfinished.unlink(missing_ok=True)
        for directory in (path.parent, path.parent.parent):
            _sync(directory)

    def _sweep(self) -> None:
        """Others may be writing theirs now, so only what is old goes."""
        before_s = time.time() - UNFINISHED_S
        for path in Path(self._path(UNFINISHED)).glob("*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before_s:
                    path.unlink()

    def _try(self, action: Callable[[], T], failure: str) -> T:
        """Each storage raises errors of its own kind, so here all of them become ours."""
        attempts = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            retry=retry_if_exception(_may_pass),
        )
        try:
            return attempts(action)
        except RetryError as error:
            last = error.last_attempt.exception()
            raise TransientError(f"the archive {self.target!r} {failure}: {last!r}") from last
        except OSError as error:
            raise SettingsError(f"the archive {self.target!r} {failure}: {error!r}") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _may_pass(error: BaseException) -> bool:
    final = (InvalidMessageError, PermissionError, NotADirectoryError, IsADirectoryError, FileNotFoundError)
    return isinstance(error, Exception) and not isinstance(error, final)


def _sync(directory: Path) -> None:
    """A name is lost with the machine's power unless its directory is synced too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
