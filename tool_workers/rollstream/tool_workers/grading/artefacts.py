"""What an agent leaves to be graded: files, and only files, checked one by one. Pure.

The archive comes out of the agent's sandbox and is untrusted: it is read in memory and never unpacked here. What would
change how tests are run is left out, whatever it is called for.
"""

from __future__ import annotations

import io
import re
import sys
import tarfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from rollstream.tool_workers.functions import ToolError

MAX_FILES = 2000
MAX_BYTES = 16 * 1024 * 1024
LEFT_OUT = (
    "conftest.py", "conftest", "sitecustomize.py", "sitecustomize", "usercustomize.py", "usercustomize", "*.pth",
    "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml", "tox.ini", "setup.cfg", "pyproject.toml",
    ".coveragerc", ".coveragerc.toml", "nose.cfg", ".noserc", "nose2.cfg", "unittest.cfg", ".pdbrc", ".pdbrc.py",
    "*.pyc", "*.so", "__pycache__", "pyvenv.cfg", ".venv", ".local", "*.dist-info", "*.egg-info",
    ".git", ".pytest_cache", ".hypothesis", ".tox",
)  # fmt: skip
"""Names of files and of folders. ``.local``: packages of a user whose home is the workspace. ``*.dist-info``: what is
said to be installed, and so the plugins that a test runner loads, or no longer finds."""
RUNNERS = frozenset({"pytest", "_pytest", "pluggy", "nose", "nose2", "coverage", "hypothesis"})
PARTS_OF_RUNNERS = frozenset({
    "py", "iniconfig", "packaging", "exceptiongroup", "tomli", "argcomplete", "xdist", "anyio",
    "_hypothesis_pytestplugin", "_hypothesis_globals",
})  # fmt: skip
"""What they import unasked, besides plugins that are called after them."""
PLUGINS_OF_RUNNERS = "pytest_"
NAMES_OF_TESTS = frozenset({"test"})
"""A package of the standard library that nobody imports, and a common folder."""
_READ_UNASKED = re.compile(
    "(?:^|/)(?:" + "|".join(re.escape(name).replace(r"\*", "[^/]*") for name in LEFT_OUT) + r")(?:/|\Z)"
)
_PLAIN_PATH = re.compile(r"[^/\0]+(/[^/\0]+)*")


class ArtefactError(ToolError):
    """What the agent left cannot be taken."""


@dataclass(frozen=True)
class Artefacts:
    """Files by relative path, and the paths that were left out because they would have changed how tests run."""

    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    left_out: tuple[str, ...] = ()

    def with_files(self, more: Mapping[str, bytes]) -> Artefacts:
        """These files, and more on top of them; what is in the way of those, or is imported instead, gives way."""
        below = tuple({f"{place}/" for path in more for place in (path, path.removesuffix(".py"))})
        folders = {folder for path in more for folder in _folders(path)}
        kept = {
            path: content
            for path, content in self.files.items()
            if not path.startswith(below) and not {path, path.removesuffix(".py")} & folders
        }
        return Artefacts({**kept, **more}, self.left_out)

    def beside_tests(self, tests: Iterable[str] = ()) -> Artefacts:
        """For tests in one process with the code: without what would be imported in place of Python's own modules.

        ``tests``: their paths; the folder of a test may be one that Python imports from.
        """
        paths = {*self.files, *tests}
        roots = {root for test in tests for root in import_roots(test, paths)} | {""}
        packages = {path.removesuffix("/__init__.py") for path in self.files if path.endswith("/__init__.py")}
        kept = {
            path: content
            for path, content in self.files.items()
            if not any(path.startswith(root) and shadows_library(path, root, packages) for root in roots)
        }
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
    return _READ_UNASKED.search(path.lower()) is not None


def import_roots(test: str, paths: Collection[str]) -> set[str]:
    """Folders, as they begin paths, that runners of this test import from: its own, and that of its whole package."""
    own = root = test[: test.rfind("/") + 1]
    while root and f"{root}__init__.py" in paths:
        root = root[: root.rfind("/", 0, -1) + 1]
    return {own, root}


def shadows_library(path: str, root: str = "", packages: Collection[str] = ()) -> bool:
    """Whether Python, importing from ``root``, would import it in place of a module of its own, or of a test runner.

    ``packages``: folders that are. Other folders are imported only where there is nothing else of that name, which of
    what is always there cannot be.
    """
    name, _, inner = path.removeprefix(root).partition("/")
    if not inner:
        name, _, suffix = name.rpartition(".")
        if suffix != "py":
            return False
    if name in RUNNERS:
        return True
    if inner and root + name not in packages:
        return False
    of_others = name in PARTS_OF_RUNNERS or name.startswith(PLUGINS_OF_RUNNERS)
    return of_others or (name in sys.stdlib_module_names and name not in NAMES_OF_TESTS)


def _folders(path: str) -> list[str]:
    """Every folder above it."""
    return [path[: place.start()] for place in re.finditer("/", path)]


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
