"""How a trainer's weights get out: the files first, whole, then the word. And how they go when nobody needs them."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from rollstream.schemas.control import PolicyLease, PolicyVersion, WorkerStatus
from rollstream.schemas.errors import PolicyFilesError
from rollstream.trainers.policy_collection import PolicyNeeds, held_by_workers, needed_by_workers, removable
from rollstream.trainers.staleness import Ancestry
from rollstream.trainers.stream_state import PublishedPolicy
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.policy_files import local_path, seal_policy, write_policy
from rollstream.transport.policy_leases import leased_digests
from rollstream.transport.policy_manifest import PolicyIdentity, policy_kind
from rollstream.transport.policy_storage import PolicyStorage, StoredPolicy
from rollstream.transport.publisher import Publisher

logger = logging.getLogger(__name__)

PUBLISH_DEADLINE_S = 120.0


async def publish_policy(
    publisher: Publisher, *, identity: PolicyIdentity, directory: Path, target_uri: str | None = None
) -> PublishedPolicy:
    """Seal ``directory`` where it lies, or copy it to ``target_uri``, then announce it. Returns after the broker's ack.

    Raises:
        PolicyFilesError: the files could not be made whole; nothing is announced.
        TransientError: the announcement was not acknowledged in time; repeat with the same version.
    """
    policy = await asyncio.to_thread(_make_whole, directory, target_uri, identity)
    await announce_policy(publisher, identity=identity, policy=policy)
    return policy


async def announce_policy(publisher: Publisher, *, identity: PolicyIdentity, policy: PublishedPolicy) -> None:
    """Say that a version is there. Safe to repeat.

    Raises:
        PolicyFilesError: the files of a local policy are gone.
    """
    local = local_path(policy.uri)
    if local is not None and not await asyncio.to_thread(local.is_dir):
        raise PolicyFilesError(f"policy directory {policy.uri!r} does not exist")
    message = PolicyVersion(
        version=identity.version,
        lineage=identity.lineage,
        uri=policy.uri,
        manifest_sha256=policy.manifest_sha256,
        published_at=time.time(),
        kind=policy.kind,
    )
    await publisher.publish(message, key=control_key(message), deadline_s=PUBLISH_DEADLINE_S)


async def find_policy(root: str, ancestry: Ancestry, version: int) -> StoredPolicy:
    """The stored policy that was ``version`` in the history of a trainer.

    Raises:
        PolicyFilesError: it is not below ``root``, or the storage failed.
    """
    stored = await asyncio.to_thread(PolicyStorage(root).list_policies)
    wanted = ancestry.at(version)
    for policy in stored:
        if policy.identity in (PolicyIdentity(*wanted), PolicyIdentity(ancestry.lineage, version)):
            return policy
    there = ", ".join(str(policy.identity) for policy in stored) or "none"
    raise PolicyFilesError(
        f"policy version {version} is not below {root!r}: it would be {wanted[0]}:{wanted[1]}, there are {there}"
    )


async def prune_policies(
    root: str,
    control: ControlFollower,
    *,
    keep: int,
    every: int | None = None,
    checkpointed: frozenset[str] = frozenset(),
    versions: frozenset[int] = frozenset(),
) -> list[StoredPolicy]:
    """Remove what nobody needs from the directories directly below ``root``; returns what is gone, oldest first.

    Killed or refused in between: the next call finishes it.
    """
    storage = PolicyStorage(root)
    stored = await asyncio.to_thread(storage.list_policies)
    now_s = time.time()
    workers = control.all(WorkerStatus).values()
    announced = control.latest(PolicyVersion)
    digests = {announced[0].manifest_sha256} if announced else set[str]()
    needs = PolicyNeeds(
        digests=checkpointed
        | digests
        | leased_digests(control.all(PolicyLease).values(), now_s)
        | needed_by_workers(workers, now_s),
        held=held_by_workers(workers, now_s),
        versions=versions,
        newest=keep,
        every=every,
    )
    removed: list[StoredPolicy] = []
    for policy in removable(stored, needs):
        try:
            await asyncio.to_thread(storage.remove, policy)
        except PolicyFilesError as error:
            logger.warning("policy %s stays for now: %s", policy.identity, error)
        else:
            removed.append(policy)
    return removed


def _make_whole(directory: Path, target_uri: str | None, identity: PolicyIdentity) -> PublishedPolicy:
    """Relative paths become absolute: workers have working directories of their own."""
    if target_uri is None:
        uri, digest = str(directory.resolve()), seal_policy(directory, identity)
    else:
        uri = target_uri if "://" in target_uri else str(Path(target_uri).resolve())
        digest = write_policy(directory, uri, identity)
    return PublishedPolicy(uri=uri, manifest_sha256=digest, kind=policy_kind(directory))
