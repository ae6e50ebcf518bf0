"""Files into the sandbox and out of it, as archives. Nothing is ever unpacked outside of one.

``{"action": "unpack", "folder": ...}``: a plain tar of our own on standard input, taken for nothing else, whatever the
names in it begin with; what others have made may be a tar (plain, gzip, bzip2, xz) or zip. Devices and links that lead
out of the folder are left out, and told on standard output.

``{"action": "pack", "folder": ..., "patterns": [...], "max_bytes": N, "max_files": N}``: an uncompressed tar of the
files that match, on standard output; symbolic links are never followed, and never packed. Nor is what cannot be read.
"""

from __future__ import annotations

import fnmatch
import io
import os
import stat
import sys
import tarfile
import zipfile

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, BinaryIO, Literal

TOO_LARGE = 3
NOT_AN_ARCHIVE = 4


def run(arguments: dict[str, Any], stdin: BinaryIO) -> None:
    """Do what ``arguments["action"]`` says; exit code 3: more than allowed, 4: not an archive."""
    if arguments["action"] == "pack":
        pack(arguments["folder"], arguments["patterns"], arguments["max_bytes"], arguments["max_files"])
    else:
        unpack(arguments["folder"], stdin.read(), is_plain_tar=True)


def unpack(folder: str, content: bytes, *, is_plain_tar: bool = False) -> None:
    """Put the members of an archive into a folder; its first bytes say what it is, unless that is known."""
    os.makedirs(folder, exist_ok=True)
    archive = io.BytesIO(content)
    try:
        if not is_plain_tar and content[:4] == b"PK\x03\x04":
            _unpack_zip(folder, archive)
        else:
            _unpack_tar(folder, archive, mode="r:" if is_plain_tar else "r:*")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        sys.stdout.write(f"not an archive: {error}\n")
        sys.exit(NOT_AN_ARCHIVE)


def _unpack_tar(folder: str, archive: io.BytesIO, *, mode: Literal["r:", "r:*"]) -> None:
    with tarfile.open(fileobj=archive, mode=mode) as tar:
        for member in tar:
            target = _inside(folder, member.name)
            is_link_out = member.issym() and not _stays_inside(
                folder, os.path.dirname(target or folder), member.linkname
            )
            is_link_out = is_link_out or (member.islnk() and _inside(folder, member.linkname) is None)
            if target is None or member.isdev() or is_link_out:
                sys.stdout.write(f"left out: {member.name!r}\n")
                continue
            if member.isdir():
                os.makedirs(target, exist_ok=True)
                continue
            member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
            member.mode = member.mode & 0o777 | stat.S_IRUSR | stat.S_IWUSR
            member.name = os.path.relpath(target, folder)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            tar.extract(member, folder, set_attrs=True)


def _unpack_zip(folder: str, archive: io.BytesIO) -> None:
    with zipfile.ZipFile(archive) as zip_:
        for member in zip_.infolist():
            target = _inside(folder, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if target is None or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                sys.stdout.write(f"left out: {member.filename!r}\n")
            elif member.is_dir():
                os.makedirs(target, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "wb") as file:
                    file.write(zip_.read(member))
                os.chmod(target, (member.external_attr >> 16) & 0o777 or 0o644)


def pack(folder: str, patterns: list[str], max_bytes: int, max_files: int) -> None:
    """Write the regular files below a folder whose relative paths match a pattern."""
    total = count = 0
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in matching(folder, patterns):
            try:
                fd = os.open(os.path.join(folder, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError:  # a socket, say
                continue
            with open(fd, "rb") as file:
                facts = os.fstat(file.fileno())
                if not stat.S_ISREG(facts.st_mode):
                    continue
                total, count = total + facts.st_size, count + 1
                if total > max_bytes or count > max_files:
                    sys.exit(TOO_LARGE)
                member = tarfile.TarInfo(path)
                member.size, member.mode = facts.st_size, facts.st_mode & 0o777
                tar.addfile(member, file)


def matching(folder: str, patterns: list[str]) -> list[str]:
    """Relative paths of regular files, sorted; ``**`` matches any number of folders, and nothing follows links."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            path = os.path.relpath(os.path.join(place, name), folder)
            if any(matches(path, pattern) for pattern in patterns) and not os.path.islink(os.path.join(place, name)):
                found.append(path)
    return sorted(found)


def matches(path: str, pattern: str) -> bool:
    """Whether a relative path matches; ``*`` stays within one folder."""
    return _match(path.split("/"), pattern.strip("/").split("/"))


def _match(names: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return not names
    if wanted[0] == "**":
        return any(_match(names[start:], wanted[1:]) for start in range(len(names) + 1)) or wanted == ["**"]
    return bool(names) and fnmatch.fnmatchcase(names[0], wanted[0]) and _match(names[1:], wanted[1:])


def _inside(folder: str, name: str) -> str | None:
    """The path of a member below the folder; None: it would be elsewhere."""
    if not name or name.startswith("/") or "\0" in name:
        return None
    target = os.path.normpath(os.path.join(folder, name))
    if target != folder and not target.startswith(folder.rstrip("/") + "/"):
        return None
    return target if _stays_inside(folder, folder, os.path.dirname(os.path.relpath(target, folder))) else None


def _stays_inside(folder: str, place: str, link: str) -> bool:
    """Whether a path that starts in ``place`` leads below the folder, links that are there already followed."""
    real = os.path.realpath(os.path.join(place, link))
    root = os.path.realpath(folder)
    return real == root or real.startswith(root + "/")
