"""Which policy a word of the user means, with everything that a pin needs. Reads `control` and storage only."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (aiokafka is annotated in part only)

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import PurePosixPath

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import InvalidMessageError, PolicyFilesError, SettingsError, TransientError
from rollstream.schemas.tasks import PolicyPin
from rollstream.trainers.evaluation.report import PolicyFacts
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.policy_manifest import ADAPTER_CONFIG
from rollstream.transport.policy_storage import PolicyStorage
from rollstream.transport.records import decode_record
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.unreadable import SteadyReader

READ_DEADLINE_S = 60.0
LINEAGE_AND_VERSION = re.compile(r"(\d+):(\d+)")


class PolicyHistory:
    """Every announcement of a policy that `control` still holds, then those that follow. Commits nothing."""

    def __init__(self, consumer: AIOKafkaConsumer, partition: TopicPartition) -> None:
        self._consumer = consumer
        self._partition = partition
        self._reader = SteadyReader(consumer)

    async def to_end(self) -> list[PolicyVersion]:
        """What is there and was not returned before, in the order of the log.

        Raises:
            TransientError: the topic could not be read to its end in time.
        """
        found: list[PolicyVersion] = []
        try:
            async with asyncio.timeout(READ_DEADLINE_S):
                end = (await self._consumer.end_offsets([self._partition]))[self._partition]
                while await self._consumer.position(self._partition) < end:
                    found += await self.next(timeout_s=1.0)
        except TimeoutError as error:
            raise TransientError(
                f"topic {self._partition.topic!r} could not be read to its end within {READ_DEADLINE_S:.0f} s"
            ) from error
        return found

    async def next(self, *, timeout_s: float) -> list[PolicyVersion]:
        """What comes within ``timeout_s``; possibly nothing.

        Raises:
            TransientError: the topic cannot be read now; asking again goes on.
        """
        found: list[PolicyVersion] = []
        try:
            records = await self._reader.read(timeout_s=timeout_s)
        except KafkaError as error:
            raise TransientError(f"topic {self._partition.topic!r} cannot be read now: {error!r}") from error
        for record in records:
            # Other facts, and what is none at all: those who act on them bury it.
            try:
                found.append(decode_record(record, PolicyVersion))
            except InvalidMessageError:
                continue
        return found


@asynccontextmanager
async def policy_history(kafka: KafkaSettings) -> AsyncGenerator[PolicyHistory]:
    """A history, from the beginning of `control`."""
    partition = TopicPartition(kafka.topic("control"), 0)
    consumer = await start_consumer(kafka, partition.topic, auto_offset_reset="earliest")
    try:
        yield PolicyHistory(consumer, partition)
    finally:
        await stop_consumer(consumer)


async def choose_policy(asked_for: str, kafka: KafkaSettings) -> PolicyFacts:
    """The policy that ``latest``, ``base``, ``LINEAGE:VERSION`` or a URI means now, its manifest checked.

    Raises:
        SettingsError: there is no such policy.
        PolicyFilesError: its files are gone, or not those that were announced.
    """
    if asked_for == "base":
        return PolicyFacts(asked_for=asked_for, lineage=0, version=0)
    async with policy_history(kafka) as history:
        announced = await history.to_end()
    if asked_for == "latest" or LINEAGE_AND_VERSION.fullmatch(asked_for):
        wanted = announced_policy(asked_for, announced)
        if wanted is None and asked_for != "latest" and announced:
            wanted = await asyncio.to_thread(_stored_beside, asked_for, max(announced, key=_age))
        if wanted is None:
            raise SettingsError(unknown_policy(asked_for, announced))
        await asyncio.to_thread(check_files, wanted)
        return wanted
    return await asyncio.to_thread(_sealed_policy, asked_for)


def announced_policy(asked_for: str, announced: Iterable[PolicyVersion]) -> PolicyFacts | None:
    """The announced policy that ``latest`` or ``LINEAGE:VERSION`` means; None if there is none. Pure.

    Before the first announcement the latest policy is the model as it came.
    """
    newest_first = sorted(announced, key=_age, reverse=True)
    if asked_for == "latest":
        if not newest_first:
            return PolicyFacts(asked_for=asked_for, lineage=0, version=0)
        return policy_facts(asked_for, newest_first[0])
    matching = (policy for policy in newest_first if f"{policy.lineage}:{policy.version}" == _plain(asked_for))
    return next((policy_facts(asked_for, policy) for policy in matching), None)


def policy_facts(asked_for: str, policy: PolicyVersion) -> PolicyFacts:
    """The facts of an announced policy.

    (0, 0) is the model as workers were started with it: they load nothing for it.
    """
    if (policy.lineage, policy.version) == (0, 0):
        return PolicyFacts(asked_for=asked_for, lineage=0, version=0)
    return PolicyFacts(
        asked_for=asked_for,
        lineage=policy.lineage,
        version=policy.version,
        uri=policy.uri,
        manifest_sha256=policy.manifest_sha256,
        kind=policy.kind,
    )


def policy_pin(policy: PolicyFacts) -> PolicyPin:
    """What its tasks carry."""
    return PolicyPin(
        lineage=policy.lineage,
        version=policy.version,
        uri=policy.uri,
        manifest_sha256=policy.manifest_sha256,
        kind=policy.kind,
    )


def unknown_policy(asked_for: str, announced: Iterable[PolicyVersion]) -> str:
    """What to say when nobody has heard of a policy."""
    known = [f"{p.lineage}:{p.version}" for p in sorted(announced, key=_age, reverse=True)][:5]
    newest = f"the newest announced are {known}" if known else "none has been announced yet"
    return (
        f"policy {asked_for!r} is unknown: {newest}; take LINEAGE:VERSION, latest, base, or the URI of a published "
        "policy"
    )


def check_files(policy: PolicyFacts) -> None:
    """Whether the files lie where workers will look. Blocking.

    Raises:
        PolicyFilesError: the manifest is gone or another one.
    """
    if policy.uri:
        _, manifest_sha256 = PolicyStorage(policy.uri).manifest()
        if manifest_sha256 != policy.manifest_sha256:
            raise PolicyFilesError(
                f"the manifest of policy {policy.uri!r} is not the one that was announced as {policy.label}: the "
                "directory was written again; publish each version under a new path"
            )


def _sealed_policy(uri: str) -> PolicyFacts:
    manifest, manifest_sha256 = PolicyStorage(uri).manifest()
    if manifest.identity is None:
        raise SettingsError(
            f"the manifest of policy {uri!r} does not say its lineage and version, so its tokens could not be told "
            "from others: publish it with stream.publish_policy, or write it with rollstream.transport.policy_files."
            "write_policy(directory, uri, PolicyIdentity(lineage, version))"
        )
    if manifest.identity == (0, 0):
        raise SettingsError(
            f"policy {uri!r} was published as 0:0, which workers take for the model they were started with: take "
            "--policy base, or publish it as a later version"
        )
    return PolicyFacts(
        asked_for=uri,
        lineage=manifest.identity.lineage,
        version=manifest.identity.version,
        uri=uri,
        manifest_sha256=manifest_sha256,
        kind="lora" if any(file.name == ADAPTER_CONFIG for file in manifest.files) else "full",
    )


def _stored_beside(asked_for: str, newest: PolicyVersion) -> PolicyFacts | None:
    """Compaction forgets announcements; the files usually lie beside those of the newest policy."""
    root = newest.uri.rstrip("/").rpartition("/")[0]
    if not root or root.endswith(":/") or PurePosixPath(root) == PurePosixPath("/"):
        return None
    for stored in PolicyStorage(root).list_policies():
        if str(stored.identity) == _plain(asked_for):
            return PolicyFacts(
                asked_for=asked_for,
                lineage=stored.identity.lineage,
                version=stored.identity.version,
                uri=stored.uri,
                manifest_sha256=stored.manifest_sha256,
                kind="lora" if ADAPTER_CONFIG in stored.file_names else "full",
            )
    return None


def _plain(asked_for: str) -> str:
    """Without leading zeros."""
    return ":".join(str(int(part)) for part in asked_for.split(":"))


def _age(policy: PolicyVersion) -> tuple[int, int]:
    return policy.lineage, policy.version
