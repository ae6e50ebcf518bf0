"""Policies in an S3 bucket, behind a real HTTP server that speaks its protocol."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeStubs=false
# pyright: reportUnknownArgumentType=false
# (fsspec and moto are not annotated)

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from rollstream.schemas.errors import PolicyFilesError
from rollstream.transport.policy_files import fetch_policy, write_policy
from rollstream.transport.policy_manifest import MANIFEST, PolicyIdentity
from rollstream.transport.policy_storage import PolicyStorage


@contextmanager
def storage_with(method: str, replacement: Callable[..., Awaitable[None]]) -> Generator[None]:
    """A client of S3 one of whose methods is another; clients bind their methods when they are made."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(file_system()), method, replacement)
        file_system()
        yield
    file_system()


def killed_at(method: str, calls: int, action: str) -> None:
    """Run ``action`` in a process that ends without a word after some calls of the client's ``method``."""
    program = f"""
import os
from pathlib import Path
from s3fs import S3FileSystem
from rollstream.transport.policy_files import write_policy
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.policy_storage import PolicyStorage
unharmed, calls = S3FileSystem.{method}, []
async def harmed(self, *arguments, **options):
    await unharmed(self, *arguments, **options)
    calls.append(arguments)
    if len(calls) == {calls}:
        os._exit(9)
S3FileSystem.{method} = harmed
{action}
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 9


def file_system() -> Any:
    fsspec.filesystem("s3").clear_instance_cache()
    return fsspec.filesystem("s3")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    directory = tmp_path / "weights"
    (directory / "shards").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    for shard in range(6):
        (directory / "shards" / f"model-{shard}.safetensors").write_bytes(os.urandom(200_000))
    return directory


def same_files(left: Path, right: Path) -> bool:
    def content(directory: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(directory)): path.read_bytes()
            for path in directory.rglob("*")
            if path.is_file() and path.name != MANIFEST
        }

    return content(left) == content(right)


def test_a_policy_travels_through_s3_whole(bucket: str, weights: Path, tmp_path: Path) -> None:
    digest = write_policy(weights, f"{bucket}/run/v1", PolicyIdentity(3, 1))

    fetched = fetch_policy(f"{bucket}/run/v1", digest, tmp_path / "cache")

    assert same_files(fetched, weights)


def test_a_trainer_killed_while_it_uploads_leaves_nothing_that_counts_and_may_repeat(
    bucket: str, weights: Path, tmp_path: Path
) -> None:
    url = f"{bucket}/run/v1"
    killed_at("_put_file", 3, f"write_policy(Path({str(weights)!r}), {url!r})")
    assert file_system().find(url) != []
    with pytest.raises(PolicyFilesError, match=r"manifest\.json|not fetched"):
        fetch_policy(url, "0" * 64, tmp_path / "cache")

    digest = write_policy(weights, url)

    assert same_files(fetch_policy(url, digest, tmp_path / "cache"), weights)
    assert write_policy(weights, url) == digest, "the same policy once more is no other policy"
    (weights / "config.json").write_text("[]")
    with pytest.raises(PolicyFilesError, match="exists already"):
        write_policy(weights, url)


def test_a_storage_that_fails_for_a_moment_is_asked_again(bucket: str, weights: Path, tmp_path: Path) -> None:
    put_file: Callable[..., Awaitable[None]] = type(file_system())._put_file
    refused: list[str] = []

    async def shaky(self: Any, source: str, target: str, **options: Any) -> None:
        if target not in refused:
            refused.append(target)
            raise TimeoutError("the storage is slow down")
        await put_file(self, source, target, **options)

    with storage_with("_put_file", shaky):
        digest = write_policy(weights, f"{bucket}/run/v1")

    assert len(refused) == 7
    assert same_files(fetch_policy(f"{bucket}/run/v1", digest, tmp_path / "cache"), weights)


def test_a_bucket_that_is_not_there_is_named(bucket: str, weights: Path) -> None:
    with pytest.raises(PolicyFilesError, match=f"{bucket}-no/run/v1"):
        write_policy(weights, f"{bucket}-no/run/v1")


def test_stored_policies_are_listed_newest_first_and_removed_one_by_one(
    bucket: str, weights: Path, tmp_path: Path
) -> None:
    for lineage, version in [(1, 9), (4, 2), (1, 10)]:
        write_policy(weights, f"{bucket}/run/{lineage}-{version}", PolicyIdentity(lineage, version))
    write_policy(weights, f"{bucket}/run/nameless")
    files = file_system()
    files.pipe_file(f"{bucket}/run/torn/{MANIFEST}", b"{")
    files.pipe_file(f"{bucket}/run/1-9/notes.txt", b"mine")
    storage = PolicyStorage(f"{bucket}/run")

    listed = storage.list_policies()

    assert [policy.identity for policy in listed] == [(4, 2), (1, 10), (1, 9)]
    assert {policy.size_bytes for policy in listed} == {1_200_002}
    storage.remove(listed[-1])
    assert [policy.identity for policy in storage.list_policies()] == [(4, 2), (1, 10)]
    assert file_system().find(f"{bucket}/run/1-9") == [f"{bucket.removeprefix('s3://')}/run/1-9/notes.txt"]
    fetched = fetch_policy(f"{bucket}/run/4-2", listed[0].manifest_sha256, tmp_path / "cache")
    assert same_files(fetched, weights)


def test_a_removal_that_was_interrupted_is_finished_by_the_next(bucket: str, weights: Path, tmp_path: Path) -> None:
    digest = write_policy(weights, f"{bucket}/run/1-1", PolicyIdentity(1, 1))

    def storage() -> PolicyStorage:
        return PolicyStorage(f"{bucket}/run")

    killed_at("_rm_file", 2, f"s = PolicyStorage({bucket!r} + '/run'); s.remove(s.list_policies()[0])")
    with pytest.raises(PolicyFilesError, match="not fetched"):
        fetch_policy(f"{bucket}/run/1-1", digest, tmp_path / "cache")

    [left] = storage().list_policies()
    storage().remove(left)

    assert storage().list_policies() == []
    assert file_system().find(f"{bucket}/run") == []


def test_a_local_directory_is_emptied_of_what_was_published_only(weights: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    for version in (1, 2):
        write_policy(weights, str(root / str(version)), PolicyIdentity(0, version))
    (root / "1" / "mine.txt").write_text("keep")
    storage = PolicyStorage(str(root))

    for policy in storage.list_policies():
        storage.remove(policy)

    assert [path.relative_to(root).as_posix() for path in root.rglob("*")] == ["1", "1/mine.txt"]
    shutil.rmtree(root)
    assert storage.list_policies() == []
