"""Which stored policies nobody needs any more. Pure.

A policy is needed while it is the announced one, is that of a checkpoint, is held by a live worker whose episodes draw
from it, is under a lease, is among the newest, or is one that was asked to be kept. When in doubt it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rollstream.schemas.control import WorkerStatus
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.policy_storage import StoredPolicy

SILENT_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class PolicyNeeds:
    """What must stay.

    Attributes:
        digests: manifests of policies that are announced, checkpointed, leased, or named by a worker.
        held: what live workers draw from: (lineage, version) as it was announced to them.
        versions: that were named to be kept, in whatever lineage.
        newest: so many of the newest stay.
        every: each version that is a multiple of it stays; None: none for that reason.
    """

    digests: frozenset[str] = frozenset()
    held: frozenset[PolicyIdentity] = frozenset()
    versions: frozenset[int] = frozenset()
    newest: int = 2
    every: int | None = None

    def holds(self, policy: StoredPolicy) -> bool:
        """Whether the policy must stay for another reason than being new.

        A policy that a restored trainer announced again has the lineage of its first announcement in its manifest, so
        a worker's version holds every policy of that number in its own lineage and older ones.
        """
        lineage, version = policy.identity
        return (
            policy.manifest_sha256 in self.digests
            or version in self.versions
            or (self.every is not None and version % self.every == 0)
            or any(held.version == version and lineage <= held.lineage for held in self.held)
        )


def removable(stored: Iterable[StoredPolicy], needs: PolicyNeeds) -> list[StoredPolicy]:
    """What may go, oldest first."""
    oldest_first: Sequence[StoredPolicy] = sorted(stored, key=lambda policy: policy.identity)
    candidates = oldest_first[: max(0, len(oldest_first) - needs.newest)]
    return [policy for policy in candidates if not needs.holds(policy)]


def held_by_workers(statuses: Iterable[WorkerStatus], now_s: float) -> frozenset[PolicyIdentity]:
    """What rollout workers draw from that are alive at a unix time."""
    return frozenset(
        PolicyIdentity(status.lineage, status.policy_version)
        for status in live_workers(statuses, now_s)
        if status.lineage is not None and status.policy_version is not None
    )


def needed_by_workers(statuses: Iterable[WorkerStatus], now_s: float) -> frozenset[str]:
    """Manifests of the files that live workers may read again: adapters side by side, pins that wait for their turn."""
    return frozenset(
        held.manifest_sha256
        for status in live_workers(statuses, now_s)
        for held in status.held_policies
        if held.manifest_sha256
    )


def live_workers(statuses: Iterable[WorkerStatus], now_s: float) -> list[WorkerStatus]:
    """Rollout workers that are alive at a unix time; one silent for three intervals is not."""
    return [
        status
        for status in statuses
        if status.role == "rollout-worker"
        and status.state != "stopped"
        and now_s - status.updated_at <= SILENT_INTERVALS * status.interval_s
    ]
