"""Which policies a worker loads, and what it does with those it cannot load."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rollstream.rollout_workers.engine import PolicyRef
from rollstream.rollout_workers.policy_follower import RETRY_REFUSED_S, PolicyFollower
from rollstream.rollout_workers.scripted_engine import ScriptedEngine
from rollstream.rollout_workers.scripts import arithmetic
from rollstream.schemas.control import PolicyVersion
from rollstream.transport.policy_files import seal_policy


class Control:
    """The newest policy, as told."""

    def __init__(self) -> None:
        self.newest: PolicyVersion | None = None

    def latest(self, message_type: type[PolicyVersion], /) -> tuple[PolicyVersion, int] | None:
        return None if self.newest is None else (self.newest, 0)

    async def wait_for_change(self, timeout_s: float) -> bool:
        return False


class Worker:
    """A follower with everything around it."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.folder = folder
        self.engine = ScriptedEngine(arithmetic)
        self.control = Control()
        self.follower = PolicyFollower(self.engine, self.control, folder / "cache", clock=lambda: self.now)

    def weights(self, name: str) -> Path:
        directory = self.folder / name
        directory.mkdir()
        (directory / "weights").write_bytes(name.encode())
        return directory

    def announce(self, directory: Path, version: int, *, lineage: int = 0, manifest: str | None = None) -> None:
        sha256 = manifest or seal_policy(directory)
        self.control.newest = PolicyVersion(
            version=version, lineage=lineage, uri=str(directory), manifest_sha256=sha256
        )


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path)


async def test_the_newest_policy_is_loaded_once(worker: Worker) -> None:
    worker.announce(worker.weights("v3"), 3)
    await worker.follower.catch_up()
    await worker.follower.catch_up()
    assert worker.engine.policy == PolicyRef(0, 3)
    assert worker.follower.loaded == 1


async def test_an_older_version_or_lineage_is_not_loaded(worker: Worker) -> None:
    worker.announce(worker.weights("new"), 1, lineage=5)
    await worker.follower.catch_up()
    worker.announce(worker.weights("old"), 9, lineage=4)
    await worker.follower.catch_up()
    assert worker.engine.policy == PolicyRef(5, 1)


async def test_corrupt_files_leave_the_engine_as_it_is_and_a_later_version_is_loaded(worker: Worker) -> None:
    torn = worker.weights("torn")
    worker.announce(torn, 1)
    (torn / "weights").write_bytes(b"lost")
    await worker.follower.catch_up()
    assert (worker.engine.policy, worker.follower.refused) == (PolicyRef(0, 0), 1)
    worker.announce(worker.weights("v2"), 2)
    await worker.follower.catch_up()
    assert worker.engine.policy == PolicyRef(0, 2)


async def test_files_that_were_away_are_looked_for_again_after_a_while_and_not_before(worker: Worker) -> None:
    weights = worker.weights("v1")
    worker.announce(weights, 1)
    away = worker.folder / "away"
    shutil.move(weights, away)
    await worker.follower.catch_up()
    shutil.move(away, weights)
    worker.now = RETRY_REFUSED_S - 1
    await worker.follower.catch_up()
    assert worker.engine.policy == PolicyRef(0, 0)
    worker.now = RETRY_REFUSED_S
    await worker.follower.catch_up()
    assert worker.engine.policy == PolicyRef(0, 1)
