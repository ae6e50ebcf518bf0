"""Directories of policy weights that are whole or not there: sealed, copied into a store, fetched from it.

A directory counts once its manifest lies in it (see `policy_manifest`). A reader has the sha256 of the manifest from
`PolicyVersion`, so it knows that it holds exactly what was published. All functions block: call them in threads.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

from rollstream.schemas.errors import PolicyFilesError
from rollstream.transport.policy_manifest import (
    MANIFEST,
    PolicyIdentity,
    describe_files,
    explained,
    sync,
    verify_files,
)
from rollstream.transport.policy_storage import PolicyStorage

logger = logging.getLogger(__name__)

KEPT_IN_CACHE = 3
"""Downloaded versions that stay: another process on this machine may still be loading the one before."""


def seal_policy(directory: Path, identity: PolicyIdentity | None = None) -> str:
    """Make a finished directory count, where it lies: sync every file, then put the manifest in place.

    Args:
        directory: with the weights.
        identity: which policy it is; only directories that say so can be listed and collected.

    Returns:
        The sha256 of the manifest. Sealing again gives the same one, unless a file has changed.

    Raises:
        PolicyFilesError: there is no file to seal, or the disk failed; then there is no manifest.
    """
    if not directory.is_dir():
        raise PolicyFilesError(f"policy directory {str(directory)!r} does not exist")
    part = directory / f".{MANIFEST}.{uuid.uuid4().hex}"
    try:
        (directory / MANIFEST).unlink(missing_ok=True)
        body = describe_files(directory, identity).encode()
        part.write_bytes(body)
        sync(part)
        part.rename(directory / MANIFEST)
        sync(directory)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PolicyFilesError(f"policy {str(directory)!r} was not sealed: {explained(error)}") from error
    return hashlib.sha256(body).hexdigest()


def write_policy(source: Path, target_uri: str, identity: PolicyIdentity | None = None) -> str:
    """Copy a directory of weights to a local path or any fsspec URL, and seal it there.

    Safe to repeat: what lies there already and is the same, stays; what a broken copy left is overwritten.

    Returns:
        The sha256 of the manifest.

    Raises:
        PolicyFilesError: a file is missing, the disk is full, another policy lies there; a local target then does not
            exist, a remote one has no manifest.
    """
    if not source.is_dir():
        raise PolicyFilesError(f"policy directory {str(source)!r} does not exist")
    local = local_path(target_uri)
    if local is not None:
        return _copy(source, local, identity)
    try:
        manifest = describe_files(source, identity)
    except OSError as error:
        raise PolicyFilesError(f"policy {str(source)!r} cannot be read: {explained(error)}") from error
    return PolicyStorage(target_uri).put(source, manifest)


def fetch_policy(uri: str, manifest_sha256: str, cache_dir: Path) -> Path:
    """A local directory with exactly the files that were published; checked on every call.

    A local directory is used where it lies; anything else is downloaded into ``cache_dir`` once.

    Raises:
        PolicyFilesError: a file is missing, torn or corrupt; the message names it.
    """
    local = local_path(uri)
    if local is not None:
        verify_files(local, manifest_sha256)
        return local
    target = cache_dir / manifest_sha256
    if target.is_dir():
        try:
            verify_files(target, manifest_sha256)
            return target
        except PolicyFilesError as error:
            logger.warning("the cached policy is damaged, it is fetched again: %s", error)
            shutil.rmtree(target, ignore_errors=True)
    return _download(uri, manifest_sha256, target)


def local_path(uri: str) -> Path | None:
    """The path of a local directory; None for a URL of anything else."""
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None if "://" in uri else Path(uri)


def _copy(source: Path, target: Path, identity: PolicyIdentity | None) -> str:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        if (target / MANIFEST).is_file():
            body = describe_files(source, identity).encode()
            if (target / MANIFEST).read_bytes() == body:
                return hashlib.sha256(body).hexdigest()
        if target.exists():
            raise PolicyFilesError(
                f"policy directory {str(target)!r} exists already: publish each version under a new path"
            )
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(MANIFEST))
        manifest_sha256 = seal_policy(part, identity)
        part.rename(target)
        sync(target.parent)
    except (OSError, shutil.Error) as error:
        raise PolicyFilesError(
            f"policy {str(source)!r} was not copied to {str(target)!r}: {_copy_explained(error)}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest_sha256


def _download(uri: str, manifest_sha256: str, target: Path) -> Path:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        part.mkdir(parents=True)
        PolicyStorage(uri).get(part, manifest_sha256)
        verify_files(part, manifest_sha256)
        _put_in_place(part, target)
    except OSError as error:
        raise PolicyFilesError(f"policy {uri!r} was not fetched: {explained(error)}") from error
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


def _copy_explained(error: Exception) -> str:
    """`shutil` gathers the errors of all files: the first one says enough."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, target, why = cast("tuple[str, str, str]", error.args[0][0])
        return f"{why} ({os.fsdecode(target)!r})"
    return explained(error)
