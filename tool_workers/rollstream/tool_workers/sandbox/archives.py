"""What runs inside a sandbox, and what starts sandboxes, each as one archive that any Python can start."""

from __future__ import annotations

import io
import logging
import subprocess
import zipfile
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
PACKAGE = ("rollstream", "tool_workers", "sandbox")
LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""The same files make the same archive."""
COMPILE_TIMEOUT_S = 60.0
COMPILE = """
import importlib.util, io, marshal, struct, sys, zipfile
source = zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read()))
compiled = io.BytesIO()
with zipfile.ZipFile(compiled, "w") as target:
    for member in source.infolist():
        code = compile(source.read(member), member.filename, "exec", dont_inherit=True, optimize=2)
        header = importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + bytes(8)
        target.writestr(zipfile.ZipInfo(member.filename + "c", member.date_time), header + marshal.dumps(code))
sys.stdout.buffer.write(compiled.getvalue())
"""
"""Unchecked hash-based byte-code (PEP 552)."""


@cache
def inside_archive() -> bytes:
    """A zip archive; started as ``python archive.pyz <channel> <limits>``."""
    return _archive("inside", "supervisor")


@cache
def launcher_archive() -> bytes:
    """A zip archive; started as ``python archive.pyz <socket> <process number of the worker>``."""
    return _archive("outside", "launcher")


@cache
def compiled_archive(interpreter: str) -> bytes:
    """The same, compiled for one interpreter: it starts faster and takes less memory. Blocking.

    If that interpreter cannot compile it, its source will do.
    """
    command = [interpreter, "-I", "-S", "-B", "-c", COMPILE]
    try:
        done = subprocess.run(
            command, input=inside_archive(), capture_output=True, check=True, env={}, timeout=COMPILE_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s cannot compile what runs in sandboxes, they start from source: %s", interpreter, error)
        return inside_archive()
    return done.stdout


def _archive(folder: str, main_module: str) -> bytes:
    package = (*PACKAGE, folder)
    files = {"__main__.py": f"from {'.'.join(package)}.{main_module} import main\n\nmain()\n"}
    for depth in range(1, len(package)):
        files["/".join((*package[:depth], "__init__.py"))] = ""
    files |= {"/".join((*package, path.name)): path.read_text() for path in sorted((FOLDER / folder).glob("*.py"))}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zip_:
        for name, text in files.items():
            zip_.writestr(zipfile.ZipInfo(name, LONG_AGO), text)
    return archive.getvalue()
