"""How a trainer's weights get out: the files first, whole, then the word that they are there."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import PolicyFilesError
from rollstream.trainers.stream_state import PublishedPolicy
from rollstream.transport.control import control_key
from rollstream.transport.policy_files import seal_policy, write_policy
from rollstream.transport.publisher import Publisher

PUBLISH_DEADLINE_S = 120.0


async def publish_policy(
    publisher: Publisher, *, lineage: int, version: int, directory: Path, target_uri: str | None = None
) -> PublishedPolicy:
    """Seal ``directory`` where it lies, or copy it to ``target_uri``, then announce it. Returns after the broker's ack.

    Raises:
        PolicyFilesError: the files could not be made whole; nothing is announced.
        TransientError: the announcement was not acknowledged in time; repeat with the same version.
    """
    policy = await asyncio.to_thread(_make_whole, directory, target_uri)
    await announce_policy(publisher, lineage=lineage, version=version, policy=policy)
    return policy


async def announce_policy(publisher: Publisher, *, lineage: int, version: int, policy: PublishedPolicy) -> None:
    """Say that a version is there. Safe to repeat.

    Raises:
        PolicyFilesError: the files of a local policy are gone.
    """
    if "://" not in policy.uri and not await asyncio.to_thread(Path(policy.uri).is_dir):
        raise PolicyFilesError(f"policy directory {policy.uri!r} does not exist")
    message = PolicyVersion(
        version=version,
        lineage=lineage,
        uri=policy.uri,
        manifest_sha256=policy.manifest_sha256,
        published_at=time.time(),
    )
    await publisher.publish(message, key=control_key(message), deadline_s=PUBLISH_DEADLINE_S)


def _make_whole(directory: Path, target_uri: str | None) -> PublishedPolicy:
    """Relative paths become absolute: workers have working directories of their own."""
    if target_uri is None:
        return PublishedPolicy(uri=str(directory.resolve()), manifest_sha256=seal_policy(directory))
    uri = target_uri if "://" in target_uri else str(Path(target_uri).resolve())
    return PublishedPolicy(uri=uri, manifest_sha256=write_policy(directory, uri))
