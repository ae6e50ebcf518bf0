"""Where the files of the policies are that a worker may have to load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rollstream.rollout_workers.engine import AS_IT_CAME, PolicyKind, PolicyRef
from rollstream.schemas.control import HeldPolicy, PolicyVersion
from rollstream.schemas.errors import DataError, PolicyFilesError
from rollstream.schemas.rules import MAX_HELD_POLICIES
from rollstream.schemas.tasks import PolicyPin
from rollstream.transport.policy_files import fetch_policy


@dataclass(frozen=True, slots=True)
class PolicySource:
    """``uri`` empty: the model as the engine was started with it."""

    uri: str = ""
    manifest_sha256: str = ""
    kind: PolicyKind = "full"


class PolicySources:
    """Announcements and pins, by (lineage, version). What is announced counts before what a pin says."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._announced: dict[PolicyRef, PolicySource] = {}
        self._pinned: dict[PolicyRef, PolicySource] = {}
        self._pins: Counter[PolicyRef] = Counter()

    def announced(self, version: PolicyVersion) -> None:
        """A trainer has said so."""
        policy = PolicyRef(version.lineage, version.version)
        self._announced[policy] = PolicySource(version.uri, version.manifest_sha256, version.kind)

    @contextmanager
    def pinned(self, pin: PolicyPin) -> Generator[None]:
        """Within the block an episode needs the files of its pin."""
        policy = PolicyRef(pin.lineage, pin.version)
        self._pinned.setdefault(policy, PolicySource(pin.uri, pin.manifest_sha256, pin.kind))
        self._pins[policy] += 1
        try:
            yield
        finally:
            self._pins[policy] -= 1
            if not self._pins[policy]:
                del self._pins[policy], self._pinned[policy]

    def of(self, policy: PolicyRef) -> PolicySource:
        """Where its files are.

        Raises:
            PolicyFilesError: nobody has said.
        """
        if policy == AS_IT_CAME:
            return PolicySource()
        source = self._known(policy)
        if source is None:
            raise PolicyFilesError(f"it is not known where the files of policy {policy} are: publish it again")
        return source

    def check_pin(self, pin: PolicyPin) -> None:
        """Nothing, if what else is known of the policy is the same.

        Raises:
            PolicyFilesError: other files go by its (lineage, version).
        """
        policy = PolicyRef(pin.lineage, pin.version)
        known = self._known(policy)
        if known is not None and known.manifest_sha256 != pin.manifest_sha256:
            raise PolicyFilesError(
                f"the manifest of policy {policy} is {pin.manifest_sha256!r} in the pin and {known.manifest_sha256!r} "
                "elsewhere: pin it as it was announced"
            )

    def fetch(self, source: PolicySource) -> Path | None:
        """A directory with its files, checked; None: the model as it came. Blocking.

        Raises:
            PolicyFilesError: a file is missing, torn or corrupt.
        """
        return fetch_policy(source.uri, source.manifest_sha256, self._cache) if source.uri else None

    def held(self, in_engine: Iterable[PolicyRef]) -> list[HeldPolicy]:
        """The policies of pinned episodes, and those, with what tells their files."""
        needed = sorted({*self._pins, *in_engine} - {AS_IT_CAME})[:MAX_HELD_POLICIES]
        return [
            HeldPolicy(lineage=policy.lineage, version=policy.version, manifest_sha256=self._digest(policy))
            for policy in needed
        ]

    def forget_all_but(self, needed: Iterable[PolicyRef]) -> None:
        """Announcements of other policies will not be asked for any more."""
        kept = set(needed)
        self._announced = {policy: source for policy, source in self._announced.items() if policy in kept}

    def _digest(self, policy: PolicyRef) -> str:
        source = self._known(policy)
        return "" if source is None else source.manifest_sha256

    def _known(self, policy: PolicyRef) -> PolicySource | None:
        return self._announced.get(policy) or self._pinned.get(policy)


def no_such_policy(policy: PolicyRef, error: PolicyFilesError) -> DataError:
    """Of a task that is pinned to files that cannot be had."""
    return DataError(f"policy {policy}, to which the task is pinned, cannot be had: {error}")
