# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (fsspec is not annotated)

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from rollstream.schemas.errors import PolicyFilesError
from rollstream.transport.policy_files import KEPT_IN_CACHE, fetch_policy, seal_policy, write_policy
from rollstream.transport.policy_manifest import MANIFEST


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    directory = tmp_path / "weights"
    (directory / "shards").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "shards" / "model-1.safetensors").write_bytes(os.urandom(10_000))
    return directory


@pytest.fixture
def remote() -> str:
    return f"memory://policies-{uuid4().hex}/v1"


def test_a_sealed_directory_is_used_where_it_lies(weights: Path, tmp_path: Path) -> None:
    digest = seal_policy(weights)
    assert fetch_policy(str(weights), digest, tmp_path / "cache") == weights
    assert fetch_policy(weights.as_uri(), digest, tmp_path / "cache") == weights
    assert not (tmp_path / "cache").exists()


def test_a_policy_is_copied_whole(weights: Path, tmp_path: Path) -> None:
    target = tmp_path / "store" / "v1"
    digest = write_policy(weights, str(target))
    fetched = fetch_policy(str(target), digest, tmp_path / "cache")
    assert (fetched / "shards" / "model-1.safetensors").read_bytes() == (
        weights / "shards" / "model-1.safetensors"
    ).read_bytes()
    assert sorted(p.name for p in target.parent.iterdir()) == ["v1"]


def test_a_remote_policy_is_downloaded_once(weights: Path, remote: str, tmp_path: Path) -> None:
    digest = write_policy(weights, remote)
    fetched = fetch_policy(remote, digest, tmp_path / "cache")
    assert (fetched / "config.json").read_text() == "{}"
    fsspec.filesystem("memory").rm(remote, recursive=True)
    assert fetch_policy(remote, digest, tmp_path / "cache") == fetched


def test_a_damaged_download_is_fetched_again(weights: Path, remote: str, tmp_path: Path) -> None:
    digest = write_policy(weights, remote)
    fetched = fetch_policy(remote, digest, tmp_path / "cache")
    (fetched / "config.json").write_text("[]")
    assert (fetch_policy(remote, digest, tmp_path / "cache") / "config.json").read_text() == "{}"


def test_the_cache_keeps_a_few_versions(weights: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fetched: list[Path] = []
    for version in range(KEPT_IN_CACHE + 2):
        (weights / "config.json").write_text(str(version))
        url = f"memory://policies-{uuid4().hex}/v{version}"
        fetched.append(fetch_policy(url, write_policy(weights, url), cache))
    assert len(list(cache.iterdir())) == KEPT_IN_CACHE
    assert fetched[-1].is_dir()


def tear(path: Path) -> None:
    path.write_bytes(b"short")


def corrupt(path: Path) -> None:
    path.write_bytes(b"x" * 10_000)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (tear, "is torn: 5 bytes, 10000 were published"),
        (corrupt, "is corrupt"),
        (Path.unlink, "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_was_published_is_named(
    weights: Path, tmp_path: Path, damage: Callable[[Path], None], complaint: str
) -> None:
    digest = seal_policy(weights)
    damage(weights / "shards" / "model-1.safetensors")
    with pytest.raises(PolicyFilesError, match=rf"model-1\.safetensors'.*{complaint}"):
        fetch_policy(str(weights), digest, tmp_path / "cache")


def test_a_directory_written_again_is_another_policy(weights: Path, tmp_path: Path) -> None:
    digest = seal_policy(weights)
    (weights / "config.json").write_text("[]")
    assert seal_policy(weights) != digest
    with pytest.raises(PolicyFilesError, match="is not the published one"):
        fetch_policy(str(weights), digest, tmp_path / "cache")


def test_a_policy_that_is_gone_is_said_to_be_gone(weights: Path, remote: str, tmp_path: Path) -> None:
    digest = seal_policy(weights)
    shutil.rmtree(weights)
    with pytest.raises(PolicyFilesError, match=r"no readable manifest\.json"):
        fetch_policy(str(weights), digest, tmp_path / "cache")
    with pytest.raises(PolicyFilesError, match="was not fetched"):
        fetch_policy(remote, digest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-fetched stays"


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", ""])
def test_a_manifest_cannot_name_a_path_outside(weights: Path, tmp_path: Path, name: str) -> None:
    body = json.dumps({"files": [{"name": name, "size": 1, "sha256": "0"}]}).encode()
    (weights / MANIFEST).write_bytes(body)
    with pytest.raises(PolicyFilesError, match="a path outside the directory"):
        fetch_policy(str(weights), sha256(body).hexdigest(), tmp_path / "cache")


def test_an_existing_target_is_not_written_over(weights: Path, remote: str, tmp_path: Path) -> None:
    for target in (str(tmp_path / "v1"), remote):
        write_policy(weights, target)
        (weights / "config.json").write_text(target)
        with pytest.raises(PolicyFilesError, match="exists already"):
            write_policy(weights, target)


def test_nothing_to_publish_is_an_error(tmp_path: Path, remote: str) -> None:
    empty = tmp_path / "empty"
    with pytest.raises(PolicyFilesError, match="does not exist"):
        seal_policy(empty)
    empty.mkdir()
    (empty / ".hidden").write_text("")
    with pytest.raises(PolicyFilesError, match="is empty"):
        seal_policy(empty)
    with pytest.raises(PolicyFilesError, match="is empty"):
        write_policy(empty, remote)


def test_a_full_disk_leaves_nothing_that_counts(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str, **_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(PolicyFilesError, match="No space left on device"):
        write_policy(weights, str(tmp_path / "store" / "v1"))
    assert list((tmp_path / "store").iterdir()) == []


def test_a_disk_that_is_full_at_the_manifest_leaves_none(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PolicyFilesError, match="No space left on device"):
        seal_policy(weights)
    assert sorted(p.name for p in weights.iterdir()) == ["config.json", "shards"]
