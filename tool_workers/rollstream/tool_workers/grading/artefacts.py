"""What an agent leaves to be graded: files, and only files, checked one by one. Pure.

The archive comes out of the agent's sandbox and is untrusted: it is read in memory and never unpacked here. What would
change how tests are run is left out, whatever it is called for.
"""

from __future__ import annotations

import fnmatch
import io
import re
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rollstream.tool_workers.functions import ToolError

MAX_FILES = 2000
MAX_BYTES = 16 * 1024 * 1024
LEFT_OUT = (
    "conftest.py", "sitecustomize.py", "usercustomize.py", "*.pth", "pytest.ini", ".pytest.ini", "pytest.toml",
    ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml", ".coveragerc", "*.pyc", "*.so", "pyvenv.cfg",
)  # fmt: skip
LEFT_OUT_FOLDERS = (
    "__pycache__", ".git", ".pytest_cache", ".tox", ".venv", "conftest", "sitecustomize", "usercustomize",
)  # fmt: skip
RUNNERS = frozenset({"pytest", "_pytest", "pluggy", "nose", "nose2", "coverage", "hypothesis"})
NAMES_OF_TESTS = frozenset({"test"})
"""A package of the standard library that nobody imports, and a common folder."""
_PLAIN_PATH = re.compile(r"[^/\0]+(/[^/\0]+)*")


class ArtefactError(ToolError):
    """What the agent left cannot be taken."""


@dataclass(frozen=True)
class Artefacts:
    """Files by relative path, and the paths that were left out because they would have changed how tests run."""

    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    left_out: tuple[str, ...] = ()

    def with_files(self, more: Mapping[str, bytes]) -> Artefacts:
        """These files, and more on top of them; what is in the way of those gives way."""
        kept = {path: content for path, content in self.files.items() if not _is_in_the_way(path, more)}
        return Artefacts({**kept, **more}, self.left_out)

    def beside_tests(self) -> Artefacts:
        """For tests in one process with the code: without what would be imported in place of Python's own modules."""
        kept = {path: content for path, content in self.files.items() if not shadows_library(path)}
        return Artefacts(kept, tuple(sorted({*self.left_out, *(self.files.keys() - kept.keys())})))

    def archive(self) -> bytes:
        """As a tar, for ``sandbox/inside/archive.py``."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for path, data in sorted(self.files.items()):
                member = tarfile.TarInfo(path)
                member.size, member.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
                tar.addfile(member, io.BytesIO(data))
        return content.getvalue()


def read_artefacts(archive: bytes) -> Artefacts:
    """The files of an archive that an agent's sandbox has made.

    Raises:
        ArtefactError: it is no archive, or holds too much.
    """
    files: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for member in tar:
                if not member.isreg() or not is_plain(member.name):
                    continue
                total += member.size
                if total > MAX_BYTES or len(files) >= MAX_FILES:
                    raise ArtefactError(f"the artefacts are more than {MAX_FILES} files or {MAX_BYTES} bytes")
                content = tar.extractfile(member)
                files[member.name] = content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ArtefactError(f"the artefacts are no archive: {error}") from error
    return sorted_out(files)


def sorted_out(files: Mapping[str, bytes]) -> Artefacts:
    """Without what would change how tests are run."""
    kept = {path: content for path, content in files.items() if not changes_tests(path)}
    return Artefacts(kept, tuple(sorted(files.keys() - kept.keys())))


def changes_tests(path: str) -> bool:
    """Whether Python or a test runner would read this file unasked."""
    *folders, name = path.split("/")
    return any(fnmatch.fnmatchcase(name.lower(), each) for each in LEFT_OUT) or any(
        folder in LEFT_OUT_FOLDERS for folder in folders
    )


def shadows_library(path: str) -> bool:
    """Whether Python would import it in place of a module of its own, or of a test runner."""
    name = path.split("/")[0].split(".")[0].lower()
    return name in RUNNERS or (name in sys.stdlib_module_names and name not in NAMES_OF_TESTS)


def _is_in_the_way(path: str, others: Iterable[str]) -> bool:
    return any(path == other or path.startswith(other + "/") or other.startswith(path + "/") for other in others)


def is_plain(path: str) -> bool:
    """Whether it is a relative path without detours."""
    return bool(_PLAIN_PATH.fullmatch(path)) and not {".", ".."} & set(path.split("/"))


def check_paths(paths: Iterable[str], what: str) -> None:
    """Of what a task brings along.

    Raises:
        ToolError: one is not relative, or makes detours.
    """
    for path in paths:
        if not is_plain(path):
            raise ToolError(f"{what}: {path!r} is not a relative path like 'folder/name.py'")
