"""Where below a folder a repository's past lies, told by what git and its like would read, hardly ever by names.

Git finds objects wherever they lie and whatever holds them; an agent can make up the rest of a repository around them.
So each pack, loose object, bundle and reflog is found by itself, and a folder that was a repository, or most of one, is
found as a whole, for the messages and names in it. Names decide only where nobody gives them to anything else.

Archives in archives, compressed histories and patches are files like others.
"""

from __future__ import annotations

import os
import re
import stat
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import NoReturn

_GIT = ("ORIG_HEAD", "FETCH_HEAD", "MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG")
_MESSAGES = ("COMMIT_EDITMSG", "TAG_EDITMSG", "NOTES_EDITMSG", "MERGE_MSG", "SQUASH_MSG")
_HIDDEN = (".git", ".hg", ".svn", "_svn", ".jj", ".bzr", ".sl", ".pijul", "_darcs", ".fossil", ".fslckout", "_fossil_")
_NAMES = frozenset((*_GIT, *_MESSAGES, *_HIDDEN))
SYSTEMS = (
    ("store/00changelog.i",),  # Mercurial, Sapling
    ("00changelog.i",),
    ("wc.db", "pristine"),  # Subversion: working copies, old ones, servers
    ("entries", "text-base"),
    ("format", "db/revs"),
    ("branch-format", "repository"),  # Bazaar
    ("branch-format", "branch"),
    ("hashed_inventory", "patches"),  # Darcs
    ("repo/store", "working_copy/checkout"),  # Jujutsu
    ("Entries", "Repository", "Root"),  # CVS
)
"""What lies together only in a folder of a system other than git."""
SNIFFED_BYTES = 1024
REFS = ("heads", "tags", "remotes")
_FAN = re.compile("[0-9a-f]{2}")
_ID = rb"[0-9a-f]{40}(?:[0-9a-f]{24})?"
_HEAD = re.compile(rb"(?:ref:\s*refs/\S+|" + _ID + rb")\s*\Z")
_FORMAT = re.compile(rb"^\s*repositoryformatversion\s*=", re.MULTILINE)
_PACKED_REFS = rb"# pack-refs with:"
_REFLOG = _ID + rb" " + _ID + rb" [^\n]*> \d+ [+-]\d{4}[\t\n]"
_INDEX = rb"DIRC\x00\x00\x00[\x02-\x04]"
_OBJECT = re.compile(rb"(?:blob|tree|commit|tag) \d+\x00")
_PAST = re.compile(
    b"|".join(
        (
            rb"PACK\x00\x00\x00[\x02\x03]",
            rb"\xfftOc\x00\x00\x00\x02|RIDX\x00\x00\x00\x01|MTME\x00\x00\x00\x01",  # beside packs
            rb"BITM\x00\x01|MIDX[\x01\x02][\x01\x02]|CGPH\x01[\x01\x02]",
            rb"P pack-" + _ID + rb"\.pack\n",
            rb"REFT[\x01\x02]",  # refs and their logs in one
            _INDEX,
            _REFLOG,
            _PACKED_REFS,
            rb"# v\d git bundle\n",
            rb"(?:feature done\n)?(?:reset refs/[^\n]+\n)?(?:commit refs/[^\n]+|blob)\nmark :\d+\n",  # git fast-export
            rb"HG10(?:UN|GZ|BZ)|HG20\x00\x00",
            rb"SVN-fs-dump-format-version: \d",
            rb"SQLite format 3\x00.{52}\x0f\x05\x51[\x11-\x13]",  # Fossil
            rb"head\s+\d+(?:\.\d+)+;\s*(?:branch|access)\b",  # RCS, and with it CVS
            rb"\x01h\d{5}\n",  # SCCS
        )
    ),
    re.DOTALL,
)


def find_histories(folder: str) -> list[str]:
    """Paths that hold a past, none below another; the folder itself when it is nothing but a repository.

    Raises:
        OSError: something cannot be looked into.
    """
    found: list[str] = []
    for place, folders, names in os.walk(folder, onerror=_raise):
        if is_repository(place, {*folders, *names}):
            found.append(place)
            folders.clear()
            continue
        past = {name for name in (*folders, *names) if is_name_of_past(name)}
        past |= {name for name in names if name not in past and is_past(_start(os.path.join(place, name)))}
        folders[:] = [name for name in folders if name not in past]
        found += [os.path.join(place, name) for name in sorted(past)]
    return found


def is_name_of_past(name: str) -> bool:
    """Whether nobody would give a file or folder this name but a system that keeps histories."""
    return name in _NAMES or name.lower() in _NAMES


def is_past(start: bytes) -> bool:
    """Whether a file that begins so is a piece of a history."""
    if _PAST.match(start):
        return True
    if len(start) < 2 or start[0] & 0x0F != zlib.DEFLATED or int.from_bytes(start[:2], "big") % 31 != 0:
        return False
    try:
        return _OBJECT.match(zlib.decompressobj().decompress(start, 32)) is not None
    except zlib.error:
        return False


def is_repository(folder: str, entries: set[str]) -> bool:
    """Whether a folder with these entries is what a system keeps a history in, or so much of it that little lacks.

    A work tree, with ``.git`` or the like in it, is none.
    """
    for parts in SYSTEMS:
        if parts[0].split("/")[0] in entries and all(os.path.lexists(os.path.join(folder, part)) for part in parts):
            return True
    parts = sum(
        (
            "objects" in entries and _has_objects(os.path.join(folder, "objects")),
            "refs" in entries and any(os.path.isdir(os.path.join(folder, "refs", kind)) for kind in REFS),
            "packed-refs" in entries and _begins(folder, "packed-refs", _PACKED_REFS),
            "logs" in entries and _begins(folder, "logs/HEAD", _REFLOG),
            "index" in entries and _begins(folder, "index", _INDEX),
            "commondir" in entries and _begins(folder, "commondir", rb"(?:\.\./|/)\S*\s*\Z"),
            "reftable" in entries and os.path.isfile(os.path.join(folder, "reftable", "tables.list")),
        )
    )
    return parts > 1 or (parts == 1 and (_has_head(folder, entries) or _has_config(folder, entries)))


def _has_head(folder: str, entries: set[str]) -> bool:
    path = os.path.join(folder, "HEAD")
    if "HEAD" not in entries:
        return False
    return os.readlink(path).startswith("refs/") if os.path.islink(path) else bool(_HEAD.match(_start(path)))


def _has_config(folder: str, entries: set[str]) -> bool:
    return "config" in entries and _FORMAT.search(_start(os.path.join(folder, "config"))) is not None


def _has_objects(folder: str) -> bool:
    """Of git's, in a folder or in what a link of its name leads to."""
    names = os.listdir(folder) if os.path.isdir(folder) else ()
    places = [os.path.join(folder, name) for name in names if name == "pack" or _FAN.fullmatch(name)]
    return any(
        is_past(_start(os.path.join(place, name)))
        for place in places
        if os.path.isdir(place)
        for name in os.listdir(place)
    )


def _begins(folder: str, name: str, wanted: bytes) -> bool:
    return re.match(wanted, _start(os.path.join(folder, name))) is not None


def _start(path: str) -> bytes:
    """The first bytes of a regular file; of anything else, none."""
    try:
        facts = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    if not stat.S_ISREG(facts.st_mode):
        return b""
    with open(path, "rb") as file:
        return file.read(SNIFFED_BYTES)


def _raise(error: OSError) -> NoReturn:
    raise error
