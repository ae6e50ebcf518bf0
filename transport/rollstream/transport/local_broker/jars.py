"""The pinned Kafka jars: fetched once per user, each checked against its digest, put in place by one rename.

The list holds every jar the broker needs, so nothing is resolved at run time: a resolver's version mediation would
pick kafka-clients 3.9 beside the log4j artifacts, and the broker would not start.
"""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (jgo is only partly annotated)

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from itertools import repeat
from pathlib import Path

from rollstream.schemas.errors import SettingsError, TransientError

logger = logging.getLogger(__name__)

KAFKA_VERSION = "4.1.0"
DOWNLOADS_AT_ONCE = 8
REQUEST_TIMEOUT_S = 60


@dataclass(frozen=True)
class JarPin:
    """One jar: its coordinate ``group:artifact:version`` and the SHA-256 of its bytes, in hex."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file in the set."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinate(self) -> str:
        """The Maven coordinate."""
        return f"{self.group}:{self.artifact}:{self.version}"


Fetch = Callable[[JarPin, Path], Path]
"""Brings the jar of a pin somewhere below the given folder, or finds it elsewhere, and says where it is."""


def parse_pins(text: str) -> tuple[JarPin, ...]:
    """Pins out of lines ``group:artifact:version sha256``."""
    pins: list[JarPin] = []
    for line in text.splitlines():
        coordinate, sha256 = line.split()
        group, artifact, version = coordinate.split(":")
        pins.append(JarPin(group, artifact, version, sha256))
    return tuple(pins)


def pinned_jars() -> tuple[JarPin, ...]:
    """The set this release runs."""
    return parse_pins(files("rollstream.transport.local_broker").joinpath("jars.txt").read_text(encoding="utf-8"))


def jar_folder(cache_dir: Path, pins: Sequence[JarPin]) -> Path:
    """Where a set lives: named by the Kafka version and by the digest of its pins, so a folder never changes."""
    digest = hashlib.sha256("\n".join(f"{pin.coordinate} {pin.sha256}" for pin in pins).encode()).hexdigest()
    return cache_dir / f"kafka-{KAFKA_VERSION}-{digest[:8]}"


def ensure_jars(cache_dir: Path, pins: Sequence[JarPin] | None = None, fetch: Fetch | None = None) -> Path:
    """Folder with every pinned jar, fetched if it is not there yet. Safe to call from several processes at once.

    Raises:
        SettingsError: jgo is missing, or a jar's bytes are not the pinned ones.
        TransientError: a jar could not be fetched.
    """
    pins = pinned_jars() if pins is None else pins
    fetch = fetch or _fetch_with_jgo
    folder = jar_folder(cache_dir, pins)
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    logger.info("fetching %d Kafka jars into %s, once", len(pins), folder)
    staging = Path(tempfile.mkdtemp(prefix="fetch-", dir=cache_dir))
    try:
        complete = staging / "complete"
        complete.mkdir()
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            fetched = list(pool.map(fetch, pins, repeat(staging / "repository")))
        for pin, source in zip(pins, fetched, strict=True):
            _place_checked(pin, source, complete)
        _put_in_place(complete, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _place_checked(pin: JarPin, source: Path, folder: Path) -> None:
    target = folder / pin.file_name
    shutil.copyfile(source, target)
    with target.open("rb") as jar:
        found = hashlib.file_digest(jar, "sha256").hexdigest()
    if found != pin.sha256:
        raise SettingsError(
            f"{pin.coordinate!r} has SHA-256 {found}, pinned is {pin.sha256}: the copy at {str(source)!r} is not the "
            "one it should be. Remedy: delete it there or in the mirror it came from and start again"
        )


def _put_in_place(complete: Path, folder: Path) -> None:
    try:
        complete.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        logger.debug("another process was first with %s", folder)


def _fetch_with_jgo(pin: JarPin, repository: Path) -> Path:
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import default_maven_repo
        from jgo.maven import MavenContext
    except ImportError as error:
        raise SettingsError(
            "the Kafka jars are not on this machine and the package jgo, which fetches them, is missing. Remedy: "
            "`uv pip install 'rollstream[broker]'`, or set broker.jars_dir to the libs folder of an unpacked Kafka"
        ) from error
    context = MavenContext(repo_cache=repository, local_repos=[Path(default_maven_repo())], timeout=REQUEST_TIMEOUT_S)
    context.remote_repos = {**GlobalSettings.load().repositories, **context.remote_repos}
    artifact = context.project(pin.group, pin.artifact).at_version(pin.version).artifact()
    try:
        return artifact.resolve()
    except (OSError, RuntimeError) as error:
        raise TransientError(
            f"could not fetch {pin.coordinate!r}: {error}. Remedy: check the network (a mirror goes into the "
            "[repositories] section of jgo's settings), or set broker.jars_dir to the libs folder of an unpacked Kafka"
        ) from error
