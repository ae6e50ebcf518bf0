"""What tool sessions start with, and what of a repository's past an agent can find: nothing."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rollstream.schemas.tasks import WorkspaceSpec
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory, SupervisedSandbox
from rollstream.tool_workers.settings import MIB, SandboxSettings
from rollstream.tool_workers.workspaces import WorkspaceError, Workspaces, is_below

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("git") is None, reason="git makes the repositories of these tests"),
]

FUTURE = "the-answer-of-a-later-commit"
SECRET_AUTHOR = "someone@example.org"


class Counting:
    """Opens sandboxes, and counts them."""

    def __init__(self, factory: SandboxFactory) -> None:
        self._factory = factory
        self.opened = 0

    async def open(self) -> SupervisedSandbox:
        self.opened += 1
        return await self._factory.open()


@pytest_asyncio.fixture
async def factory() -> AsyncIterator[SandboxFactory]:
    limits = SandboxSettings()
    async with SandboxFactory(build_spawner("bwrap", limits), limits, max_running_programs=4) as opened:
        yield opened


def workspaces(opener: Counting, root: Path) -> Workspaces:
    return Workspaces(opener, roots=[str(root)], max_bytes=16 * MIB, kept_bytes=64 * MIB)


def git(folder: Path, *arguments: str) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "x",
        "GIT_AUTHOR_EMAIL": SECRET_AUTHOR,
        "GIT_COMMITTER_NAME": "x",
        "GIT_COMMITTER_EMAIL": SECRET_AUTHOR,
    }
    subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Its present is the first commit; a later one, a stash, a tag, a remote and reflogs hold the answer."""
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "--quiet", "--initial-branch", "main")
    (repo / "code.py").write_text("def f(): pass\n")
    (repo / ".gitignore").write_text("build/\n")
    git(repo, "add", ".")
    git(repo, "commit", "--quiet", "--message", "first")
    git(repo, "checkout", "--quiet", "-b", "later")
    (repo / "code.py").write_text(f"def f(): return {FUTURE!r}\n")
    git(repo, "commit", "--quiet", "--all", "--message", FUTURE)
    git(repo, "tag", "--annotate", "fixed", "--message", FUTURE)
    git(repo, "checkout", "--quiet", "main")
    git(repo, "update-ref", "refs/remotes/origin/main", "later")
    git(repo, "remote", "add", "origin", f"https://example.org/{FUTURE}.git")
    (repo / "code.py").write_text(f"# {FUTURE}\n")
    git(repo, "stash")
    git(repo, "pack-refs", "--all")
    git(repo, "repack", "-a", "-d", "--quiet")
    (repo / ".git" / "hooks" / "post-checkout").write_text(f"#!/bin/sh\necho {FUTURE}\n")
    (repo / ".git" / "hooks" / "post-checkout").chmod(0o755)
    return repo


def spec_of(path: Path, kind: str) -> WorkspaceSpec:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return WorkspaceSpec(uri=str(path), sha256=digest, kind="git-bundle" if kind == "git-bundle" else "archive")


def packed(repository: Path, kind: str) -> WorkspaceSpec:
    target = repository.parent / "workspace.bin"
    if kind == "git-bundle":
        git(repository, "bundle", "create", str(target), "HEAD", "--all")
    elif kind == "zip":
        shutil.make_archive(str(target.with_suffix("")), "zip", repository)
        target = target.with_suffix(".zip")
    else:
        with tarfile.open(target, "w:gz" if kind == "tar.gz" else "w:") as tar:
            tar.add(repository, arcname=".")
    return spec_of(target, kind)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "git-bundle"])
async def test_of_a_repository_only_the_present_is_left(kind: str, repository: Path, factory: SandboxFactory) -> None:
    made = workspaces(Counting(factory), repository.parent)
    sandbox = await factory.open()
    await made.provision(sandbox, packed(repository, kind))
    looked = await sandbox.bash(
        "git log --all --format=%s; git stash list; git tag; git remote -v; git branch -a; git reflog --all; "
        "git fsck --lost-found --no-reflogs 2>&1; git status --short; ls -A; ls .git; cat code.py",
        timeout_s=20,
    )
    searched = await sandbox.bash(
        f"for o in $(git cat-file --batch-all-objects --batch-check='%(objectname)'); do git cat-file -p $o; done; "
        f"grep -rIs -e {FUTURE} -e {SECRET_AUTHOR} . ; true",
        timeout_s=20,
    )
    assert looked.output.startswith("base\n"), looked.output
    assert "def f(): pass" in looked.output
    for output in (looked.output, searched.output):
        assert FUTURE not in output
        assert SECRET_AUTHOR not in output
    count = await sandbox.bash("git rev-list --all --count; ls .git/logs .git/hooks", timeout_s=20)
    assert count.output.startswith("1\n")
    await sandbox.close()


async def test_nested_and_bare_repositories_are_no_repositories_any_more(
    repository: Path, factory: SandboxFactory
) -> None:
    outer = repository.parent / "outer"
    outer.mkdir()
    shutil.copytree(repository, outer / "vendor" / "repo")
    git(outer, "clone", "--quiet", "--bare", str(repository), str(outer / "mirror.git"))
    (outer / "submodule").mkdir()
    (outer / "submodule" / ".git").write_text("gitdir: ../vendor/repo/.git")
    target = repository.parent / "outer.tar"
    with tarfile.open(target, "w") as tar:
        tar.add(outer, arcname=".")
    sandbox = await factory.open()
    await workspaces(Counting(factory), repository.parent).provision(sandbox, spec_of(target, "tar"))
    left = await sandbox.bash(f"find . -name '*.git'; ls; grep -rs {FUTURE} .; cat vendor/repo/code.py", timeout_s=20)
    assert left.output == "submodule\nvendor\ndef f(): pass\n"
    await sandbox.close()


async def test_no_piece_of_a_repository_is_left_for_git_to_read(repository: Path, factory: SandboxFactory) -> None:
    """The zip has no entries for folders: an agent would make those that lack."""
    outer = repository.parent / "outer"
    outer.mkdir()
    shutil.copy(repository / "code.py", outer / "code.py")
    git(outer, "clone", "--quiet", "--mirror", str(repository), str(outer / "a" / "mirror.git"))
    shutil.copytree(repository / ".git", outer / "dotgit")
    shutil.copytree(repository / ".git" / "objects", outer / "objs" / "o")
    shutil.copytree(repository / ".git" / "logs", outer / "diary")
    git(repository, "bundle", "create", str(outer / "backup"), "--all")
    git(repository, "checkout", "--quiet", "later")
    shutil.copytree(repository, outer / "b" / "later-with-files", ignore=shutil.ignore_patterns("*.py"))
    for system in (".hg", ".svn", ".jj", ".bzr", "_darcs"):
        (outer / system).mkdir()
        (outer / system / "store").write_text(FUTURE)
    (outer / "objects").mkdir()
    (outer / "objects" / "chair.obj").write_text("v 0 0 0")
    target = repository.parent / "outer.zip"
    with zipfile.ZipFile(target, "w") as zip_:
        for path in sorted(path for path in outer.rglob("*") if path.is_file()):
            zip_.write(path, path.relative_to(outer))
    sandbox = await factory.open()
    await workspaces(Counting(factory), repository.parent).provision(sandbox, spec_of(target, "zip"))
    left = await sandbox.bash(
        f"find . -type f | sort; grep -rIs -e {FUTURE} -e {SECRET_AUTHOR} .; "
        "for folder in a/mirror.git dotgit; do mkdir -p $folder/refs; git --git-dir=$folder log --all 2>&1; done",
        timeout_s=20,
    )
    assert left.output.splitlines()[:3] == ["./b/later-with-files/.gitignore", "./code.py", "./objects/chair.obj"]
    assert left.output.count("not a git repository") == 2
    assert FUTURE not in left.output
    await sandbox.close()


@pytest.mark.parametrize("is_nested", [False, True])
async def test_a_history_without_files_is_no_workspace(
    is_nested: bool, repository: Path, factory: SandboxFactory
) -> None:
    mirror = repository.parent / "outer" / "mirror.git"
    git(repository, "clone", "--quiet", "--mirror", str(repository), str(mirror))
    target = repository.parent / "outer.tar"
    with tarfile.open(target, "w") as tar:
        tar.add(mirror.parent if is_nested else mirror, arcname=".")
    sandbox = await factory.open()
    with pytest.raises(WorkspaceError, match=r"a repository's history .* and not its files: pack a checkout"):
        await workspaces(Counting(factory), repository.parent).provision(sandbox, spec_of(target, "tar"))
    await sandbox.close()


async def test_an_archive_is_prepared_once_for_all_sessions(repository: Path, factory: SandboxFactory) -> None:
    counting = Counting(factory)
    made = workspaces(counting, repository.parent)
    spec = packed(repository, "tar")
    for _ in range(3):
        sandbox = await factory.open()
        await made.provision(sandbox, spec)
        assert (await sandbox.bash("cat code.py; touch mine; ls", timeout_s=10)).output.endswith("code.py\nmine\n")
        await sandbox.close()
    assert counting.opened == 1


async def test_what_cannot_be_had_is_said(repository: Path, factory: SandboxFactory) -> None:
    made = workspaces(Counting(factory), repository.parent)
    spec = packed(repository, "tar")
    rubbish = repository.parent / "rubbish"
    rubbish.write_bytes(b"no archive")
    big = repository.parent / "big.tar"
    with tarfile.open(big, "w") as tar:
        member = tarfile.TarInfo("big")
        member.size = 15 * MIB
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    crooked = repository.parent / "crooked.tar"
    with tarfile.open(crooked, "w") as tar:
        link = tarfile.TarInfo("ok")
        link.type, link.linkname = tarfile.SYMTYPE, "missing"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("ok/fine"))
    sandbox = await factory.open()
    for wrong, said in (
        (WorkspaceSpec(uri="/etc/passwd", sha256="0" * 64), "workspace_roots"),
        (WorkspaceSpec(uri=f"{repository.parent}/../x", sha256="0" * 64), "workspace_roots"),
        (WorkspaceSpec(uri=f"{repository.parent}/missing", sha256="0" * 64), "cannot be read"),
        (WorkspaceSpec(uri=spec.uri, sha256="0" * 64), "the task says"),
        (WorkspaceSpec(uri=spec.uri, sha256=spec.sha256, kind="git-bundle"), "cannot be prepared"),
        (spec_of(rubbish, "tar"), "cannot be prepared: it is no tar or zip archive"),
        (spec_of(crooked, "tar"), "cannot be prepared: something in it lies below 'ok', which is no folder"),
    ):
        with pytest.raises(WorkspaceError, match=said):
            await made.provision(sandbox, wrong)
    await made.provision(sandbox, spec_of(big, "tar"))
    await sandbox.close()


def test_below_is_below() -> None:
    assert is_below("s3://bucket/a/b.tar", "s3://bucket/a")
    assert not is_below("s3://bucket/ab.tar", "s3://bucket/a")
    assert not is_below("s3://bucket/a/../b.tar", "s3://bucket/a")
    assert not is_below("s3://bucket/a", "s3://bucket/a")
    assert not is_below("/etc/passwd", "")
