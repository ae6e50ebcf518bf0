"""Makes a workspace out of an archive or a git bundle, inside a sandbox that no agent ever sees, and packs it.

Agents have read the answers in commits that were made later. So of every repository, wherever it lies, only the files
that are there are kept (``histories.py`` tells what is past); the one at the top becomes a repository of one new commit
without author, date, remotes, reflogs, stashes or other objects.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile

from rollstream.tool_workers.sandbox.inside.archive import unpack
from rollstream.tool_workers.sandbox.inside.histories import find_histories, is_name_of_past

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, BinaryIO, NoReturn

GIT = "/usr/bin/git"
BASE = "base"
FAILED = 5
NO_FILES = (
    "it is a repository's history (a bare one, or the inside of a .git) and not its files: pack a checkout, or make a "
    "git bundle and say kind = git-bundle"
)
STEP_TIMEOUT_S = 120
LEFTOVERS = ("logs", "hooks", "COMMIT_EDITMSG", "description", "info")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": BASE,
    "GIT_AUTHOR_EMAIL": BASE,
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z",
    "GIT_COMMITTER_NAME": BASE,
    "GIT_COMMITTER_EMAIL": BASE,
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
}


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """The archive on standard input, of ``kind``; the packed workspace on standard output."""
    folder: str = arguments["folder"]
    content = stdin.read()
    report, sys.stdout = sys.stdout, sys.stderr  # nothing but the archive may come out
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- as long as the process lives
    try:
        if arguments["kind"] == "git-bundle":
            unbundle(folder, content)
        else:
            unpack(folder, content)
        strip(folder)
        with tarfile.open(fileobj=report.buffer, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            tar.add(folder, arcname=".", filter=_anonymous)
    except SystemExit:
        _fail("it is no tar or zip archive")
    except Exception as error:
        _fail(_reason(error, folder))


def unbundle(folder: str, content: bytes) -> None:
    """The files of a bundle's HEAD, else of its first branch."""
    if not os.path.exists(GIT):
        _fail("a git bundle needs git inside the sandbox: install it on the tool worker")
    bundle = "/tmp/workspace.bundle"
    with open(bundle, "wb") as file:
        file.write(content)
    heads = _git(folder, "bundle", "list-heads", bundle).split("\n")
    refs = [line.split(" ", 1)[1] for line in heads if " " in line]
    if not refs:
        _fail("the git bundle holds no branch")
    wanted = "HEAD" if "HEAD" in refs else refs[0]
    _git(folder, "init", "--quiet", "--initial-branch", "unborn")
    _git(folder, "fetch", "--quiet", bundle, f"{wanted}:refs/heads/{BASE}")
    os.unlink(bundle)
    _git(folder, "checkout", "--quiet", "--force", BASE)


def strip(folder: str) -> None:
    """No repository keeps anything but its files; one in the folder itself begins anew with them."""
    is_repository = os.path.lexists(os.path.join(folder, ".git"))
    histories = find_histories(folder)
    for path in histories:
        if path == folder:
            _fail(NO_FILES)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    if not is_repository:
        if not _has_files(folder) and not all(is_name_of_past(os.path.basename(path)) for path in histories):
            _fail(NO_FILES)
        return
    if not os.path.exists(GIT):
        return
    _git(folder, "init", "--quiet", "--initial-branch", BASE)
    _git(folder, "add", "--all", "--", ".")
    _git(folder, "commit", "--quiet", "--allow-empty", "--no-gpg-sign", "--message", BASE)
    for name in LEFTOVERS:
        path = os.path.join(folder, ".git", name)
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.unlink(path)


def _has_files(folder: str) -> bool:
    return any(names for _, _, names in os.walk(folder))


def _git(folder: str, *arguments: str) -> str:
    settings = ("-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0")
    done = subprocess.run(
        [GIT, "-C", folder, *settings, *arguments],
        capture_output=True,
        env=ENVIRONMENT,
        timeout=STEP_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        _fail(f"git {arguments[0]}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return done.stdout.decode(errors="replace")


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _reason(error: Exception, folder: str) -> str:
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return f"{type(error).__name__}: {error}"
    path = os.path.relpath(error.filename, folder)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"something in it lies below {path!r}, which is no folder in it"
    return f"{error.strerror}: {path!r}"


def _fail(reason: str) -> NoReturn:
    """Said behind a NUL, which an archive that was begun could not be mistaken for."""
    os.write(1, b"\0" + reason.encode("utf-8", "replace"))
    os._exit(FAILED)
