from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.control import HeldPolicy, PolicyLease, WorkerStatus
from rollstream.trainers.policy_collection import PolicyNeeds, held_by_workers, needed_by_workers, removable
from rollstream.transport.policy_leases import leased_digests
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.policy_storage import StoredPolicy

NOW_S = 1_000.0


def policy(lineage: int, version: int) -> StoredPolicy:
    return StoredPolicy(PolicyIdentity(lineage, version), f"/p/{lineage}-{version}", f"{lineage}:{version}", 1, ("f",))


def worker(lineage: int, version: int, *, silent_s: float = 0.0, **changes: Any) -> WorkerStatus:
    status = WorkerStatus(
        worker_id="w",
        role="rollout-worker",
        state="running",
        policy_version=version,
        lineage=lineage,
        updated_at=NOW_S - silent_s,
        interval_s=5.0,
    )
    return msgspec.structs.replace(status, **changes)


def gone(stored: list[StoredPolicy], needs: PolicyNeeds) -> list[PolicyIdentity]:
    return [policy.identity for policy in removable(stored, needs)]


STORED = [policy(1, version) for version in range(1, 7)]


def test_the_newest_stay_and_the_oldest_go_first() -> None:
    assert gone(STORED[::-1], PolicyNeeds(newest=2)) == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert gone(STORED, PolicyNeeds(newest=6)) == gone(STORED, PolicyNeeds(newest=9)) == []


@pytest.mark.parametrize(
    "needs",
    [
        PolicyNeeds(digests=frozenset({"1:2"})),
        PolicyNeeds(held=frozenset({PolicyIdentity(1, 2)})),
        PolicyNeeds(held=frozenset({PolicyIdentity(7, 2)})),
        PolicyNeeds(versions=frozenset({2})),
    ],
    ids=["announced, checkpointed or leased", "held by a worker", "announced again in a later lineage", "named"],
)
def test_what_is_needed_stays(needs: PolicyNeeds) -> None:
    assert gone(STORED, dataclasses.replace(needs, newest=1)) == [(1, 1), (1, 3), (1, 4), (1, 5)]


def test_each_nth_version_may_be_kept_for_ever() -> None:
    assert gone(STORED, PolicyNeeds(newest=1, every=3)) == [(1, 1), (1, 2), (1, 4), (1, 5)]


def test_an_older_lineage_of_a_workers_own_number_stays_and_a_later_one_does_not() -> None:
    stored = [policy(1, 5), policy(9, 5), policy(9, 6)]
    assert gone(stored, PolicyNeeds(held=frozenset({PolicyIdentity(3, 5)}), newest=1)) == [(9, 5)]


identities = st.tuples(st.integers(0, 4), st.integers(0, 12)).map(lambda pair: PolicyIdentity(*pair))


@given(
    st.sets(identities, max_size=30),
    st.sets(identities, max_size=5),
    st.sets(identities, max_size=5),
    st.integers(1, 5),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_whatever_is_needed_or_new_is_never_removed_and_all_else_is(
    stored: set[PolicyIdentity], held: set[PolicyIdentity], digests: set[PolicyIdentity], newest: int, every: int | None
) -> None:
    needs = PolicyNeeds(frozenset(f"{a}:{b}" for a, b in digests), frozenset(held), frozenset(), newest, every)

    removed = set(gone([policy(*identity) for identity in stored], needs))

    kept = stored - removed
    assert removed <= stored
    assert removed.isdisjoint(held)
    assert removed.isdisjoint(digests)
    assert set(sorted(stored)[-newest:]) <= kept
    for lineage, version in kept - set(sorted(stored)[-newest:]):
        is_held = any(h.version == version and lineage <= h.lineage for h in held)
        assert is_held or (lineage, version) in digests or (every is not None and version % every == 0)


@pytest.mark.parametrize(
    ("status", "is_held"),
    [
        (worker(1, 4), True),
        (worker(1, 4, silent_s=15.0), True),
        (worker(1, 4, silent_s=15.1), False),
        (worker(1, 4, state="draining"), True),
        (worker(1, 4, state="stopped"), False),
        (worker(1, 4, role="tool-worker"), False),
        (worker(1, 4, policy_version=None), False),
    ],
)
def test_a_worker_holds_what_it_draws_from_for_as_long_as_it_is_alive(status: WorkerStatus, is_held: bool) -> None:
    assert held_by_workers([status], NOW_S) == ({(1, 4)} if is_held else set())


def test_a_worker_names_the_files_that_it_may_read_again() -> None:
    holding = [HeldPolicy(lineage=1, version=3, manifest_sha256="1:3"), HeldPolicy(lineage=0, version=0)]
    statuses = [worker(1, 4, held_policies=holding), worker(1, 4, held_policies=holding, state="stopped")]
    assert needed_by_workers(statuses, NOW_S) == {"1:3"}
    assert needed_by_workers(statuses[1:], NOW_S) == set()


def test_a_lease_holds_until_it_ends() -> None:
    def lease(until: float, digest: str) -> PolicyLease:
        return PolicyLease(holder="h", lineage=1, version=2, manifest_sha256=digest, until=until)

    leases = [lease(NOW_S + 1, "a"), lease(NOW_S, "b"), lease(0.0, "c")]
    assert leased_digests(leases, NOW_S) == {"a"}
