"""Directories of policy weights that are whole or not there.

A directory counts once ``manifest.json`` lies in it: name, size and sha256 of every file, written last, by rename. The
sha256 of the manifest itself travels in `PolicyVersion`, so a reader knows that it holds exactly what was published.
All functions block on disks and networks: call them in threads.
"""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (fsspec is not annotated)

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import msgspec

from rollstream.schemas.errors import PolicyFilesError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
KEPT_IN_CACHE = 3
"""Downloaded versions that stay: another process on this machine may still be loading the one before."""
_CHUNK_BYTES = 4 * 1024 * 1024


class PolicyFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file; ``name`` is its path below the directory, with forward slashes."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of ``manifest.json``."""

    files: list[PolicyFile]


def seal_policy(directory: Path) -> str:
    """Make a finished directory count, where it lies: sync every file, then put the manifest in place.

    Returns:
        The sha256 of the manifest. Sealing again after a change gives a new one.

    Raises:
        PolicyFilesError: there is no file to seal, or the disk failed; then there is no manifest.
    """
    if not directory.is_dir():
        raise PolicyFilesError(f"policy directory {str(directory)!r} does not exist")
    part = directory / f".{MANIFEST}.{uuid.uuid4().hex}"
    try:
        (directory / MANIFEST).unlink(missing_ok=True)
        names = _file_names(directory)
        if not names:
            raise PolicyFilesError(f"policy directory {str(directory)!r} is empty: save the weights first")
        files = [_described(directory, name) for name in names]
        body = msgspec.json.format(msgspec.json.encode(Manifest(files=files)))
        part.write_bytes(body)
        _sync(part)
        part.rename(directory / MANIFEST)
        _sync(directory)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PolicyFilesError(f"policy {str(directory)!r} was not sealed: {_explained(error)}") from error
    return hashlib.sha256(body).hexdigest()


def write_policy(source: Path, target_uri: str) -> str:
    """Copy a directory of weights to a local path or any fsspec URL, and seal it there; ``target_uri`` must be new.

    Returns:
        The sha256 of the manifest.

    Raises:
        PolicyFilesError: a file is missing, the disk is full, the target exists; a local target then does not exist, a
            remote one has no manifest.
    """
    if not source.is_dir():
        raise PolicyFilesError(f"policy directory {str(source)!r} does not exist")
    local = _local_path(target_uri)
    return _upload(source, target_uri) if local is None else _copy(source, local)


def fetch_policy(uri: str, manifest_sha256: str, cache_dir: Path) -> Path:
    """A local directory with exactly the files that were published; checked on every call.

    A local directory is used where it lies; anything else is downloaded into ``cache_dir`` once.

    Raises:
        PolicyFilesError: a file is missing, torn or corrupt; the message names it.
    """
    local = _local_path(uri)
    if local is not None:
        _verify(local, manifest_sha256)
        return local
    target = cache_dir / manifest_sha256
    if target.is_dir():
        try:
            _verify(target, manifest_sha256)
            return target
        except PolicyFilesError as error:
            logger.warning("the cached policy is damaged, it is fetched again: %s", error)
            shutil.rmtree(target, ignore_errors=True)
    return _download(uri, manifest_sha256, target)


def _copy(source: Path, target: Path) -> str:
    if target.exists():
        raise PolicyFilesError(
            f"policy directory {str(target)!r} exists already: publish each version under a new path"
        )
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(MANIFEST))
        manifest_sha256 = seal_policy(part)
        part.rename(target)
        _sync(target.parent)
    except (OSError, shutil.Error) as error:
        raise PolicyFilesError(
            f"policy {str(source)!r} was not copied to {str(target)!r}: {_explained(error)}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest_sha256


def _upload(source: Path, target_uri: str) -> str:
    try:
        files, root = _file_system(target_uri)
        if files.exists(f"{root}/{MANIFEST}"):
            raise PolicyFilesError(f"policy {target_uri!r} exists already: publish each version under a new URL")
        described = [_described(source, name) for name in _file_names(source)]
        if not described:
            raise PolicyFilesError(f"policy directory {str(source)!r} is empty: save the weights first")
        for file in described:
            path = f"{root}/{file.name}"
            files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
            files.put_file(str(source / file.name), path)
        body = msgspec.json.format(msgspec.json.encode(Manifest(files=described)))
        files.pipe_file(f"{root}/{MANIFEST}", body)
    except OSError as error:
        raise PolicyFilesError(
            f"policy {str(source)!r} was not written to {target_uri!r}: {_explained(error)}"
        ) from error
    return hashlib.sha256(body).hexdigest()


def _download(uri: str, manifest_sha256: str, target: Path) -> Path:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        files, root = _file_system(uri)
        part.mkdir(parents=True)
        body: bytes = files.cat_file(f"{root}/{MANIFEST}")
        (part / MANIFEST).write_bytes(body)
        for file in _parsed(body, manifest_sha256, uri).files:
            (part / file.name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{file.name}", str(part / file.name))
        _verify(part, manifest_sha256)
        _put_in_place(part, target)
    except OSError as error:
        raise PolicyFilesError(f"policy {uri!r} was not fetched: {_explained(error)}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _prune(target.parent, keep=target)
    return target


def _put_in_place(part: Path, target: Path) -> None:
    try:
        part.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        # Another process on this machine has fetched the same version meanwhile.


def _prune(cache_dir: Path, *, keep: Path) -> None:
    versions = sorted(
        (path for path in cache_dir.iterdir() if path != keep and not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
    )
    for path in versions[: max(0, len(versions) + 1 - KEPT_IN_CACHE)]:
        shutil.rmtree(path, ignore_errors=True)


def _verify(directory: Path, manifest_sha256: str) -> None:
    try:
        body = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise PolicyFilesError(f"policy {str(directory)!r} has no readable {MANIFEST}: {_explained(error)}") from error
    for file in _parsed(body, manifest_sha256, str(directory)).files:
        path = directory / file.name
        try:
            size = path.stat().st_size
            if size != file.size:
                raise PolicyFilesError(f"policy file {str(path)!r} is torn: {size} bytes, {file.size} were published")
            if _sha256(path) != file.sha256:
                raise PolicyFilesError(f"policy file {str(path)!r} is corrupt: its sha256 is not the published one")
        except OSError as error:
            raise PolicyFilesError(f"policy file {str(path)!r} cannot be read: {_explained(error)}") from error


def _parsed(body: bytes, manifest_sha256: str, uri: str) -> Manifest:
    if hashlib.sha256(body).hexdigest() != manifest_sha256:
        raise PolicyFilesError(
            f"the {MANIFEST} of policy {uri!r} is not the published one: the directory was written again or is corrupt"
        )
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except msgspec.MsgspecError as error:
        raise PolicyFilesError(f"the {MANIFEST} of policy {uri!r} is no manifest: {error}") from error
    for file in manifest.files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise PolicyFilesError(
                f"the {MANIFEST} of policy {uri!r} names {file.name!r}, a path outside the directory"
            )
    return manifest


def _file_names(directory: Path) -> list[str]:
    """Files below the directory that count; hidden ones are nobody's weights."""
    paths = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in paths if p.name != MANIFEST and not any(part[0] == "." for part in p.parts))


def _described(directory: Path, name: str) -> PolicyFile:
    path = directory / name
    _sync(path)
    return PolicyFile(name=name, size=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _local_path(uri: str) -> Path | None:
    """The path of a local directory; None for a URL of anything else."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None if "://" in uri else Path(uri)


def _file_system(uri: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise PolicyFilesError(f"policy URL {uri!r} cannot be opened: {error}") from error
    return files, str(root).rstrip("/")


def _explained(error: Exception) -> str:
    """What failed, with the name of the file where the system told it."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, target, why = error.args[0][0]
        return f"{why} ({os.fsdecode(target)!r})"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror or error} ({os.fsdecode(error.filename)!r})"
    return str(error) or repr(error)
