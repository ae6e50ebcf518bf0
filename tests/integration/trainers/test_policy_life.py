"""Policies from publishing to their end, on a real broker and real files."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from rollstream.schemas.control import PolicyLease, PolicyVersion, TrainerStart, WorkerStatus
from rollstream.schemas.errors import PolicyFilesError, SettingsError
from rollstream.trainers import AsyncTrajectoryStream, TrajectoryStream
from rollstream.trainers.announcements import Announcements
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.policy_files import fetch_policy
from rollstream.transport.policy_leases import policy_lease
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker


def save_weights(home: Path, version: int) -> Path:
    directory = home / "saved"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.safetensors").write_bytes(b"weights %d" % version)
    return directory


def names(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


async def published(stream: AsyncTrajectoryStream, home: Path, *versions: int) -> None:
    for version in versions:
        await stream.publish_policy(version, await asyncio.to_thread(save_weights, home, version))


async def latest_policy(kafka: KafkaSettings) -> PolicyVersion:
    async with ControlFollower(kafka) as control:
        found = control.latest(PolicyVersion)
    assert found is not None
    return found[0]


async def test_policies_go_to_the_store_under_names_of_their_own_and_the_working_folder_may_be_written_again(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    async with AsyncTrajectoryStream(kafka, policy_store=str(store)) as stream:
        await published(stream, tmp_path, 1, 2)
        lineage = stream.stats().lineage
    policy = await latest_policy(kafka)
    assert names(store) == [f"{lineage}-1", f"{lineage}-2"]
    assert policy.uri == str(store / f"{lineage}-2")
    fetched = fetch_policy(policy.uri, policy.manifest_sha256, tmp_path / "cache")
    assert (fetched / "model.safetensors").read_bytes() == b"weights 2"


async def test_only_what_somebody_needs_survives_a_collection(
    kafka: KafkaSettings, publisher: Publisher, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    async with AsyncTrajectoryStream(kafka, policy_store=str(store)) as stream:
        await published(stream, tmp_path, 1, 2, 3)
        lineage = stream.stats().lineage
        leased = await latest_policy(kafka)
        await published(stream, tmp_path, 4)
        checkpoint = stream.state_dict()
        await published(stream, tmp_path, 5, 6, 7, 8)
    slow = WorkerStatus(
        worker_id="slow", role="rollout-worker", state="running", policy_version=5, lineage=lineage,
        updated_at=time.time(), interval_s=3600.0,
    )  # fmt: skip
    await publisher.publish(slow, key=control_key(slow))
    (store / "mine").mkdir()
    async with (
        policy_lease(publisher, "evaluation", leased),
        AsyncTrajectoryStream(kafka, policy_store=str(store)) as stream,
    ):
        stream.load_state_dict(checkpoint)
        removed = await stream.prune_policies(keep=1, every=7)
        assert [Path(uri).name for uri in removed] == [f"{lineage}-{version}" for version in (1, 2, 6)]
        assert names(store) == sorted([*(f"{lineage}-{version}" for version in (3, 4, 5, 7, 8)), "mine"])
        with pytest.raises(SettingsError, match="keep=0"):
            await stream.prune_policies(keep=0)
    async with AsyncTrajectoryStream(kafka, policy_store=str(store)) as stream:
        stream.load_state_dict(checkpoint)
        assert [Path(uri).name for uri in await stream.prune_policies(keep=1, every=7)] == [f"{lineage}-3"], (
            "given back"
        )


async def test_a_lease_is_renewed_for_as_long_as_it_is_needed(kafka: KafkaSettings, publisher: Publisher) -> None:
    policy = PolicyVersion(version=3, lineage=1, uri="/p", manifest_sha256="ab")
    async with ControlFollower(kafka) as control, policy_lease(publisher, "me", policy, lease_s=1.0):
        ends: set[float] = set()
        async with asyncio.timeout(30):
            while len(ends) < 3:
                ends |= {lease.until for lease in control.all(PolicyLease).values()}
                await control.wait_for_change(timeout_s=1)
        assert min(ends) > time.time() - 30
    async with ControlFollower(kafka) as control:
        [lease] = control.all(PolicyLease).values()
    assert lease == PolicyLease(holder="me", lineage=1, version=3, manifest_sha256="ab", until=0.0)


async def test_a_roll_back_makes_workers_load_the_older_weights_and_the_trainer_counts_from_there(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    async with AsyncTrajectoryStream(kafka, policy_store=str(tmp_path / "store")) as stream:
        await published(stream, tmp_path, 1, 2, 3)
        first = stream.stats().lineage

        uri = await stream.roll_back(1)

        stats = stream.stats()
        rolled_back = await latest_policy(kafka)
        assert uri == rolled_back.uri == str(tmp_path / "store" / f"{first}-1")
        assert (rolled_back.lineage, rolled_back.version) == (stats.lineage, stats.version) == (stats.lineage, 1)
        assert stats.lineage > first
        await published(stream, tmp_path, 2)
        newest = await latest_policy(kafka)
        assert (newest.lineage, newest.version) == (stats.lineage, 2)
        again = await stream.roll_back(1)
        assert again == uri
        with pytest.raises(SettingsError, match="cannot roll back to version 4: the trainer is at 1"):
            await stream.roll_back(4)
        state = stream.state_dict()
    async with ControlFollower(kafka) as control:
        start = control.latest(TrainerStart)
    assert start is not None
    assert (start[0].parent_lineage, start[0].parent_version) == (first, 1)
    async with AsyncTrajectoryStream(kafka, policy_store=str(tmp_path / "store")) as restored:
        restored.load_state_dict(state)
        await restored.publish_policy(2, save_weights(tmp_path, 22))
        assert (await latest_policy(kafka)).version == 2


async def test_a_roll_back_to_files_that_are_gone_changes_nothing(kafka: KafkaSettings, tmp_path: Path) -> None:
    async with AsyncTrajectoryStream(kafka, policy_store=str(tmp_path / "store")) as stream:
        await published(stream, tmp_path, 1, 2, 3)
        before = await latest_policy(kafka)
        await stream.prune_policies(keep=1)
        with pytest.raises(PolicyFilesError, match=rf"version 1 is not below .* there are {before.lineage}:3"):
            await stream.roll_back(1)
        assert await latest_policy(kafka) == before
        assert stream.stats().version == 3


async def test_a_trainer_that_was_replaced_removes_nothing(kafka: KafkaSettings, tmp_path: Path) -> None:
    store = tmp_path / "store"
    async with (
        AsyncTrajectoryStream(kafka, trainer_id="old", policy_store=str(store)) as old,
        AsyncTrajectoryStream(kafka, trainer_id="new", policy_store=str(store)) as new,
    ):
        await published(old, tmp_path, 1, 2, 3)
        await new.publish_policy(1, save_weights(tmp_path, 1))
        with pytest.raises(SettingsError, match="trainer 'new' has started after this one"):
            await publish_until_refused(old, tmp_path)
        before = names(store)
        with pytest.raises(SettingsError, match="trainer 'new' has started after this one"):
            await old.prune_policies(keep=1)
    assert names(store) == before


async def publish_until_refused(stream: AsyncTrajectoryStream, home: Path) -> None:
    """The stream hears of the other trainer a moment after we do."""
    for version in range(4, 200):
        await published(stream, home, version)


def test_a_loop_that_is_not_asynchronous_rolls_back_and_prunes_too(kafka: KafkaSettings, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with TrajectoryStream(kafka) as stream:
        for version in (1, 2, 3):
            stream.publish_policy(version, save_weights(tmp_path, version), target_uri=str(store / f"v{version}"))
        with pytest.raises(SettingsError, match="which policies"):
            stream.roll_back(2)
        assert stream.roll_back(2, root=store) == str(store / "v2")
        assert stream.prune_policies(store, keep=1) == [str(store / "v1")]
    assert names(store) == ["v2", "v3"]


async def test_a_roll_back_that_was_begun_and_not_acknowledged_is_repeated_before_anything_else(
    kafka: KafkaSettings, publisher: Publisher
) -> None:
    async with ControlFollower(kafka) as control:
        trainer = Announcements(publisher, control, "trainer")
        lineage = await trainer.start(None)
        begun = await trainer.start((lineage, 3))
        async with asyncio.timeout(30):
            while not control.has_read(begun):
                await control.wait_for_change(timeout_s=1)
        with pytest.raises(SettingsError, match=r"roll_back\(\) to version 3 was begun"):
            trainer.check_not_succeeded(lineage)
        trainer.check_not_succeeded(lineage, is_rolling_back=True)
        trainer.check_not_succeeded(begun)
        other = await Announcements(publisher, control, "other").start(None)
        async with asyncio.timeout(30):
            while not control.has_read(other):
                await control.wait_for_change(timeout_s=1)
        with pytest.raises(SettingsError, match="trainer 'other' has started after"):
            trainer.check_not_succeeded(lineage, is_rolling_back=True)


async def test_the_policy_of_the_last_checkpoint_stays_while_the_next_one_is_written(
    kafka: KafkaSettings, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    async with AsyncTrajectoryStream(kafka, policy_store=str(store)) as stream:
        lineage_names: list[str] = []
        for version in (1, 2, 3, 4, 5, 6):
            await published(stream, tmp_path, version)
            lineage_names.append(f"{stream.stats().lineage}-{version}")
            if version in (1, 2, 4):
                stream.state_dict()
        await stream.prune_policies(keep=1)
    assert names(store) == [lineage_names[place - 1] for place in (2, 4, 6)]
