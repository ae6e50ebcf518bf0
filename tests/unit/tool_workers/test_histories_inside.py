"""What is taken for a repository's past, and what is not."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.tool_workers.sandbox.inside.histories import find_histories, is_past

ANSWER = "the-answer-of-a-later-commit"
SOMEBODY = {"GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@y", "GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@y"}
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git makes the repositories of this test")
HONEST = {
    "HEAD": "HEAD of department: somebody\n",
    "docs/HEAD": "ref: refs/heads/main\n",
    "docs/config": "[core]\nrepositoryformatversion = 0\n",
    "release/HEAD": "0123456789abcdef0123456789abcdef01234567\n",
    "release/config/settings.toml": "a = 1\n",
    "release/logs/app.log": "started\n",
    "release/index": "the index of a book\n",
    "objects/ab/cdef0123456789abcdef0123456789abcdef01": "a cache of ours, no object of git's\n",
    "objects/pack/readme.txt": "packs of wolves\n",
    "refs/heads/main": "a folder about references\n",
    "models/objects/chair.obj": "v 0 0 0\n",
    "hooks/pre-commit": "#!/bin/sh\n",
    "info/exclude": "nothing\n",
    "description": "of a thing\n",
    "packed-refs": "# how references are packed\n",
    "logs/HEAD": "log of the head of department\n",
    "src/pack.py": "PACK = b'PACK'\n",
    "src/store/00changes.txt": "1.0: first\n",
    "PACK": "PACKAGE\n",
    "notes/bundle.txt": "a # v2 git bundle\n",
    "notes/blob.txt": "blob\nmark my words\n",
    "notes/head.txt": "head of cabbage\n",
    "rcs/CVS/branches.txt": "pharmacies\n",
    "requires": "store\n",
    ".gitignore": "build/\n",
    ".gitattributes": "* text\n",
    ".gitmodules": "[submodule]\n",
    ".mailmap": "",
    ".hgignore": "build\n",
    ".github/workflows/ci.yaml": "on: push\n",
    ".gitlab-ci.yml": "a: 1\n",
    "empty": "",
    "merge_msg": "a script\n",
    "repo/store/a.txt": "1",
    "working_copy/a.txt": "1",
    "Entries": "1",
    "format": "1",
    "text.sha1": "0123456789abcdef0123456789abcdef01234567",
}


def git(folder: Path, *arguments: str, text: str | None = None) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **SOMEBODY}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True, input=text
    )
    return done.stdout.strip()


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def strip(folder: Path) -> set[str]:
    """What is left, as relative paths of files and links, after all that is found has been removed."""
    for found in find_histories(str(folder)):
        path = Path(found)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Later commits, loose and packed; a stash, a tag, reflogs, a work tree and a submodule of its own."""
    repo = tmp_path / "made" / "repo"
    repo.mkdir(parents=True)
    git(repo, "init", "--quiet", "--initial-branch", "main")
    write(repo, {"code.py": "1\n"})
    git(repo, "add", ".")
    git(repo, "commit", "--quiet", "--message", "first")
    git(repo, "checkout", "--quiet", "-b", "later")
    write(repo, {"code.py": f"{ANSWER}\n"})
    git(repo, "commit", "--quiet", "--all", "--message", ANSWER)
    git(repo, "tag", "--annotate", "fixed", "--message", ANSWER)
    git(repo, "checkout", "--quiet", "main")
    git(repo, "repack", "-a", "-d", "--quiet", "--write-bitmap-index")
    git(repo, "pack-refs", "--all")
    git(repo, "commit-graph", "write", "--reachable")
    git(repo, "worktree", "add", "--quiet", str(tmp_path / "made" / "worktree"), "later")
    source = tmp_path / "made" / "source"
    shutil.copytree(repo, source)
    git(repo, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(source), "sub")
    git(repo, "commit", "--quiet", "--message", "a part")
    write(repo, {"code.py": f"stashed {ANSWER}\n"})
    git(repo, "stash")
    return repo


def git_folders(repository: Path, into: Path) -> list[Path]:
    """One history in the shapes it may have in an archive."""
    into.mkdir()
    source = repository / ".git"
    git(into, "clone", "--quiet", "--mirror", str(repository), "deep/er/mirror.git")
    git(into / "deep/er/mirror.git", "pack-refs", "--all")
    for name in ("renamed", "without_refs", "without_head", "without_objects", "linked"):
        shutil.copytree(source, into / name, symlinks=True)
    shutil.rmtree(into / "without_refs" / "refs")
    (into / "without_head" / "HEAD").unlink()
    shutil.rmtree(into / "without_objects" / "objects")
    (into / "stores").mkdir()
    shutil.move(into / "linked" / "objects", into / "stores" / "o")
    (into / "linked" / "objects").symlink_to("../stores/o")
    shutil.copytree(source / "objects", into / "a" / "store")
    shutil.copytree(source / "worktrees", into / "trees")
    shutil.copytree(source / "modules", into / "parts")
    shutil.copytree(source / "logs", into / "diary")
    return [into / "deep/er/mirror.git", into / "renamed"]


def raw_contents(folder: Path) -> bytes:
    """All that can be read out of the files of a folder, names included, by somebody who knows git."""
    read = bytearray()
    for path in folder.rglob("*"):
        read += str(path.relative_to(folder)).encode() + b"\n"
        if not path.is_file():
            continue
        content = path.read_bytes()
        read += content
        for start in range(len(content)):
            if content[start : start + 1] == b"\x78":
                try:
                    read += zlib.decompressobj().decompress(content[start:])
                except zlib.error:
                    continue
    return bytes(read)


@needs_git
def test_no_shape_of_a_repository_keeps_anything_of_its_past(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    git_folders(repository, folder)
    assert ANSWER.encode() in raw_contents(folder)
    write(folder, {"deep/er/honest.py": "2\n"})
    assert strip(folder) == {"deep/er/honest.py"}
    assert ANSWER.encode() not in raw_contents(folder)


@needs_git
def test_every_piece_of_a_history_is_found_under_any_name(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    folder.mkdir()
    pieces = [path for path in (repository / ".git").rglob("*") if path.is_file() and ANSWER not in path.name]
    messages = {"COMMIT_EDITMSG"}
    for number, path in enumerate(path for path in pieces if path.name not in messages and "hooks" not in path.parts):
        shutil.copy(path, folder / f"{number}.bin")
    assert ANSWER.encode() in raw_contents(folder)
    strip(folder)
    assert ANSWER.encode() not in raw_contents(folder)


@needs_git
@pytest.mark.parametrize("shape", ["deep/er/mirror.git", "renamed", "without_refs", "without_head"])
def test_a_folder_that_is_itself_a_repository_is_said_to_be_one(shape: str, repository: Path, tmp_path: Path) -> None:
    git_folders(repository, tmp_path / "workspace")
    folder = tmp_path / "workspace" / shape
    assert find_histories(str(folder)) == [str(folder)]


@needs_git
def test_a_work_tree_loses_its_git_and_keeps_its_files(repository: Path) -> None:
    shutil.rmtree(repository / "sub")
    (repository.parent / "worktree" / "mine").write_text("1")
    assert strip(repository.parent) >= {"repo/code.py", "repo/.gitmodules", "worktree/mine"}
    assert not list(repository.parent.rglob(".git"))


@needs_git
def test_bundles_and_streams_are_found(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    folder.mkdir()
    for version in (2, 3):
        git(repository, "bundle", "create", f"--version={version}", "--quiet", str(folder / f"{version}"), "--all")
    (folder / "all.bundle").write_bytes((folder / "2").read_bytes())
    for name, options in (("whole", ()), ("done", ("--use-done-feature",)), ("lean", ("--no-data",))):
        write(folder, {name: git(repository, "fast-export", *options, "main")})
    assert strip(folder) == set()


@needs_git
@pytest.mark.parametrize("level", range(10))
def test_an_object_is_found_however_it_is_compressed(level: int, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", ".")
    git(tmp_path, "-c", f"core.compression={level}", "hash-object", "-w", "--stdin", text="\n".join(map(str, range(9))))
    (path,) = (path for path in (tmp_path / ".git/objects").rglob("*") if path.is_file())
    assert is_past(path.read_bytes())


@needs_git
def test_repositories_of_the_longer_hash_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    folder.mkdir()
    git(folder, "init", "--quiet", "--bare", "--object-format=sha256", "long")
    blob = git(folder / "long", "hash-object", "-w", "--stdin", text=ANSWER)
    tree = git(folder / "long", "mktree", text=f"100644 blob {blob}\tfile\n")
    commit = git(folder / "long", "commit-tree", tree, "-m", ANSWER)
    git(folder / "long", "update-ref", "--create-reflog", "-m", ANSWER, "refs/heads/later", commit)
    shutil.copy(folder / "long/logs/refs/heads/later", folder / "diary")
    (folder / "long/HEAD").write_text(f"{commit}\n")
    assert strip(folder) == set()


@pytest.mark.parametrize(
    "files",
    [
        {".hg/store/x": "x"},
        {".HG/store/x": "x"},
        {"a/.svn/pristine/x": "x"},
        {".jj/repo/x": "x"},
        {".bzr/x": "x"},
        {"_darcs/x": "x"},
        {".pijul/x": "x"},
        {".sl/x": "x"},
        {".git": "gitdir: ../elsewhere"},
        {"a/COMMIT_EDITMSG": "x", "ORIG_HEAD": "x", "FETCH_HEAD": "x"},
        {"old_hg/store/00changelog.i": "x", "old_hg/requires": "x", "old_hg/last-message.txt": "x"},
        {"00changelog.i": "x", "data/code.i": "x"},
        {"old_svn/entries": "x", "old_svn/text-base/code.py.svn-base": "x"},
        {"old_bzr/branch-format": "x", "old_bzr/branch/x": "x"},
        {"old_svn/wc.db": "x", "old_svn/pristine/ab/x": "x"},
        {"server/format": "5", "server/db/revs/0/1": "x", "server/hooks/x": "x"},
        {"old_bzr/branch-format": "x", "old_bzr/repository/x": "x"},
        {"old_darcs/hashed_inventory": "x", "old_darcs/patches/x": "x"},
        {"old_jj/repo/store/x": "x", "old_jj/working_copy/checkout": "x"},
        {"CVS/Entries": "x", "CVS/Root": "x", "CVS/Repository": "x", "a/CVS/Entries": "", "a/CVS/Root": ""}
        | {"a/CVS/Repository": "x"},
        {"x.fossil": b"SQLite format 3\0" + bytes(52) + b"\x0f\x05\x51\x13"},
        {"code.py,v": "head\t1.2;\naccess;\nsymbols;\n"},
        {"SCCS/s.code.py": b"\x01h12345\n\x01s 1/1/1\n"},
        {"x.hg": b"HG10BZ..", "y.hg": b"HG20\0\0\0\0"},
        {"dump": "SVN-fs-dump-format-version: 2\n\n"},
    ],
    ids=lambda files: next(iter(files)),
)
def test_other_systems_keep_nothing_either(files: dict[str, str | bytes], tmp_path: Path) -> None:
    write(tmp_path / "project", files)
    write(tmp_path, {"code.py": "1\n"})
    assert strip(tmp_path) == {"code.py"}


ID = "0123456789abcdef0123456789abcdef01234567"
REFLOG = f"{ID} {ID} x <x@y> 1700000000 +0000\tcommit: {ANSWER}\n"
PARTS: dict[str, bytes] = {
    "objects/ab/cdef": zlib.compress(b"blob 1\0x"),
    "refs/heads/later": b"x",
    "packed-refs": b"# pack-refs with: peeled fully-peeled sorted\n",
    "logs/HEAD": REFLOG.encode(),
    "index": b"DIRC\0\0\0\2\0\0\0\0",
    "commondir": b"../..\n",
    "reftable/tables.list": b"x.ref\n",
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "other",
    [{"HEAD": "ref: refs/heads/main\n"}, {"HEAD": f"{ID}\n"}, {"config": "[core]\n\trepositoryformatversion = 0\n"}],
    ids=["branch", "detached", "config"],
)
def test_one_part_of_a_repository_and_a_word_for_it_make_one(part: str, other: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "torn", {part: PARTS[part], **other, "unheard-of": ANSWER})
    assert find_histories(str(tmp_path)) == [str(tmp_path / "torn")]


@pytest.mark.parametrize("parts", list(itertools.combinations(PARTS, 2)), ids="+".join)
def test_two_parts_of_a_repository_make_one(parts: tuple[str, str], tmp_path: Path) -> None:
    write(tmp_path / "torn", {part: PARTS[part] for part in parts})
    assert find_histories(str(tmp_path)) == [str(tmp_path / "torn")]


@pytest.mark.parametrize("part", PARTS)
def test_one_part_alone_makes_none(part: str, tmp_path: Path) -> None:
    write(tmp_path / "torn", {part: PARTS[part], "honest.py": "1\n"})
    assert "torn/honest.py" in strip(tmp_path)


@pytest.mark.parametrize(
    "content", [PARTS["packed-refs"], PARTS["index"], PARTS["logs/HEAD"], PARTS["objects/ab/cdef"], b"REFT\1..."]
)
def test_a_stray_piece_is_found_by_its_first_bytes(content: bytes, tmp_path: Path) -> None:
    write(tmp_path, {"a/stray.bin": content, "a/code.py": "1\n"})
    assert strip(tmp_path) == {"a/code.py"}


@pytest.mark.parametrize("target", ["refs/heads/main", "HEAD.txt"])
def test_a_head_may_be_a_link(target: str, tmp_path: Path) -> None:
    write(tmp_path / "torn", {"refs/heads/main": ID})
    (tmp_path / "torn" / "HEAD").symlink_to(target)
    assert find_histories(str(tmp_path)) == ([str(tmp_path / "torn")] if target.startswith("refs/") else [])


def test_honest_files_stay(tmp_path: Path) -> None:
    write(tmp_path, dict(HONEST))
    (tmp_path / "link").symlink_to("docs")
    (tmp_path / "nowhere").symlink_to("missing")
    assert find_histories(str(tmp_path)) == []


@given(st.binary(max_size=64), st.sampled_from([b"~", b"x\x9c", b"x\x01", b"PACK\0\0\0\7", b"SQLite format 3\0"]))
def test_other_bytes_are_no_past(rest: bytes, start: bytes) -> None:
    assert not is_past(start + rest)
    assert not is_past(zlib.compress(rest))


def test_what_cannot_be_looked_into_is_not_let_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        find_histories(str(tmp_path / "missing"))
