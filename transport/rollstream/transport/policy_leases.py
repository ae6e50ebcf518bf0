"""A word on `control` that somebody still needs the files of a policy, so that its trainer's collection leaves them.

Crash of the holder: the lease ends by itself after ``lease_s``. Broker away: what is renewed too late may be collected;
the holder then finds the files missing and says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager

import msgspec

from rollstream.schemas.control import PolicyLease, PolicyVersion
from rollstream.schemas.errors import TransientError
from rollstream.transport.control import control_key
from rollstream.transport.publisher import Publisher

logger = logging.getLogger(__name__)

LEASE_S = 120.0
RENEWALS_PER_LEASE = 4


@asynccontextmanager
async def policy_lease(
    publisher: Publisher, holder: str, policy: PolicyVersion, *, lease_s: float = LEASE_S
) -> AsyncGenerator[None]:
    """Hold the files of ``policy`` for the time of the block; renewed in the background, given back at its end.

    Args:
        publisher: of the holder; needs the right to write to `control`.
        holder: a name of its own; a second lease under it replaces the first.
        policy: as it was announced.
        lease_s: how long it holds after the holder has died.

    Raises:
        TransientError: the first lease was not acknowledged; nothing is held.
    """
    lease = PolicyLease(
        holder=holder,
        lineage=policy.lineage,
        version=policy.version,
        manifest_sha256=policy.manifest_sha256,
        until=time.time() + lease_s,
    )
    await publisher.publish(lease, key=control_key(lease), deadline_s=lease_s)
    async with asyncio.TaskGroup() as tasks:
        renewing = tasks.create_task(_renew(publisher, lease, lease_s))
        try:
            yield
        finally:
            renewing.cancel()
    await _say(publisher, msgspec.structs.replace(lease, until=0.0), deadline_s=lease_s)


def leased_digests(leases: Iterable[PolicyLease], now_s: float) -> frozenset[str]:
    """Manifests of the policies that are held at a unix time. Pure."""
    return frozenset(lease.manifest_sha256 for lease in leases if lease.until > now_s)


async def _renew(publisher: Publisher, lease: PolicyLease, lease_s: float) -> None:
    while True:
        await asyncio.sleep(lease_s / RENEWALS_PER_LEASE)
        renewed = msgspec.structs.replace(lease, until=time.time() + lease_s)
        await _say(publisher, renewed, deadline_s=lease_s / RENEWALS_PER_LEASE)


async def _say(publisher: Publisher, lease: PolicyLease, *, deadline_s: float) -> None:
    try:
        await publisher.publish(lease, key=control_key(lease), deadline_s=deadline_s)
    except TransientError as error:
        logger.warning("the lease of policy %d:%d was not renewed: %s", lease.lineage, lease.version, error)
