"""What a directory of policy weights holds: ``manifest.json``, with name, size and sha256 of every file.

The manifest is written last, by rename, so a directory that has one is whole. Its own sha256 travels in
`PolicyVersion`. All functions that read files block: call them in threads.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, cast

import msgspec

from rollstream.schemas.errors import PolicyFilesError

MANIFEST = "manifest.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PolicyKind = Literal["full", "lora"]
_CHUNK_BYTES = 4 * 1024 * 1024


class PolicyIdentity(NamedTuple):
    """Which policy a directory is. Greater is newer."""

    lineage: int
    version: int

    def __str__(self) -> str:
        return f"{self.lineage}:{self.version}"


class PolicyFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file; ``name`` is its path below the directory, with forward slashes."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of ``manifest.json``. Equal files of one policy make equal bytes: sealing again changes nothing."""

    files: list[PolicyFile]
    lineage: int | None = None
    """With ``version``: which policy it is. None: sealed before anybody knew."""
    version: int | None = None

    @property
    def identity(self) -> PolicyIdentity | None:
        """Which policy the directory is, where it says so."""
        if self.lineage is None or self.version is None:
            return None
        return PolicyIdentity(self.lineage, self.version)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)

    def encode(self) -> bytes:
        """For people, too: indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self))


def parse_manifest(body: bytes, uri: str, *, expected_sha256: str | None = None) -> Manifest:
    """Check and read a manifest.

    Raises:
        PolicyFilesError: it is not the published one, no manifest at all, or names a path outside the directory.
    """
    if expected_sha256 is not None and hashlib.sha256(body).hexdigest() != expected_sha256:
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


def describe_files(directory: Path, identity: PolicyIdentity | None) -> Manifest:
    """The manifest of what lies in a directory, every file synced to disk.

    Raises:
        PolicyFilesError: there is no file.
        OSError: one cannot be read.
    """
    names = _file_names(directory)
    if not names:
        raise PolicyFilesError(f"policy directory {str(directory)!r} is empty: save the weights first")
    return Manifest(
        files=[_described(directory, name) for name in names],
        lineage=identity.lineage if identity else None,
        version=identity.version if identity else None,
    )


def verify_files(directory: Path, manifest_sha256: str) -> None:
    """Check that a local directory holds exactly what was published.

    Raises:
        PolicyFilesError: a file is missing, torn or corrupt; the message names it.
    """
    try:
        body = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise PolicyFilesError(f"policy {str(directory)!r} has no readable {MANIFEST}: {explained(error)}") from error
    for file in parse_manifest(body, str(directory), expected_sha256=manifest_sha256).files:
        path = directory / file.name
        try:
            size = path.stat().st_size
            if size != file.size:
                raise PolicyFilesError(f"policy file {str(path)!r} is torn: {size} bytes, {file.size} were published")
            if _sha256(path) != file.sha256:
                raise PolicyFilesError(f"policy file {str(path)!r} is corrupt: its sha256 is not the published one")
        except OSError as error:
            raise PolicyFilesError(f"policy file {str(path)!r} cannot be read: {explained(error)}") from error


def policy_kind(directory: Path) -> PolicyKind:
    """``lora`` for a directory with a PEFT adapter, else ``full``.

    Raises:
        PolicyFilesError: it has half an adapter.
    """
    config_path = directory / ADAPTER_CONFIG
    if not config_path.exists():
        return "full"
    try:
        config: Any = json.loads(config_path.read_bytes())
    except (OSError, ValueError) as error:
        raise PolicyFilesError(f"{str(config_path)!r} cannot be read: {error}") from error
    if not isinstance(config, dict) or cast("dict[str, Any]", config).get("peft_type") != "LORA":
        raise PolicyFilesError(f"{str(config_path)!r} describes no LoRA adapter: its peft_type must be 'LORA'")
    if not any((directory / name).is_file() for name in ADAPTER_WEIGHTS):
        raise PolicyFilesError(f"the adapter {str(directory)!r} has no weights: {ADAPTER_WEIGHTS[0]} is missing")
    return "lora"


def sync(path: Path) -> None:
    """Have a file or directory on disk, not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(error: BaseException) -> str:
    """What failed, with the name of the file where the system told it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror or error} ({os.fsdecode(error.filename)!r})"
    return str(error) or repr(error)


def _file_names(directory: Path) -> list[str]:
    """Files below the directory that count; hidden ones are nobody's weights."""
    paths = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in paths if p.name != MANIFEST and not any(part[0] == "." for part in p.parts))


def _described(directory: Path, name: str) -> PolicyFile:
    path = directory / name
    sync(path)
    return PolicyFile(name=name, size=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()
