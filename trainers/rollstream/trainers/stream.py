"""The stream of training batches, and everything a trainer says to the rest.

Duty: read `trajectories`, deliver complete groups as batches, announce policies, tell producers how far they may go.

Invariants: those of `batch_forming`; positions and closed groups are in ``state_dict()`` and nowhere else, so a trainer
that is restored with its model neither skips nor repeats; offsets committed to Kafka only show the lag.

Crash: everything since the last ``state_dict()`` is read again. A restored trainer opens a new lineage of policy
versions and announces its policy at once, so that workers leave the versions that no longer lead anywhere.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import msgspec

from rollstream.schemas.control import PolicyVersion, ProducerProgress, TrainerStart, WorkerStatus
from rollstream.schemas.errors import DataLossError, InvalidMessageError, SettingsError, TransientError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.announcements import Announcements
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.policies import (
    PUBLISH_DEADLINE_S,
    announce_policy,
    find_policy,
    prune_policies,
    publish_policy,
)
from rollstream.trainers.retention_watch import RecordSizes, RetentionWatch, Standing
from rollstream.trainers.seeking import SeekTarget, find_offsets
from rollstream.trainers.settings import StreamOptions, kafka_settings, trainer_settings
from rollstream.trainers.stream_state import PassedOver, PublishedPolicy, StreamState, StreamStats
from rollstream.trainers.trajectory_log import FETCH_RECORDS, TrajectoryLog, made_anew
from rollstream.trainers.waiting import explain_wait
from rollstream.transport.control import ControlFollower
from rollstream.transport.dead_letters import DeadLetterOffice
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

FETCH_WAIT_S = 0.2
"""Control is looked at again after this long without a record."""
RECORDS_PER_TURN = 32
"""Records decoded before other tasks of the event loop get their turn."""

OnEvaluation = Callable[[TrajectoryGroup], None]


class AsyncTrajectoryStream:
    """An async context manager and async iterator of ``TrainingBatch``; used by one task at a time.

    Each training group is delivered or dropped once: complete in any status, or cut at its deadline; the one that would
    be too old first comes first. The iteration ends after ``max_batches``, or when every training run is finished
    and all its groups are closed; the last batch may then be smaller. With ``on_evaluation`` it also waits for the
    evaluation groups that were emitted by then.
    """

    def __init__(
        self,
        kafka: str | KafkaSettings,
        *,
        prefix: str | None = None,
        on_evaluation: OnEvaluation | None = None,
        **options: Unpack[StreamOptions],
    ) -> None:
        """Connects to nothing yet.

        Args:
            kafka: ``host:port``, or complete settings.
            prefix: of all topics.
            on_evaluation: gets every complete group of evaluation tasks once, while a batch is awaited.
            options: the fields of ``TrainerSettings``.

        Raises:
            SettingsError: an argument is wrong.
        """
        self.settings = trainer_settings(options)
        self._kafka = kafka_settings(kafka, prefix)
        self._on_evaluation = on_evaluation
        self._log = TrajectoryLog(
            self._kafka,
            topic=self.settings.topic,
            read_ahead_bytes=self.settings.buffer_bytes // 4,
            group_id=f"{self._kafka.prefix}trainer.{self.settings.trainer_id}",
        )
        self._publisher = Publisher(self._kafka, profile="durable")
        self._dead_letters = DeadLetterOffice(self._kafka, role="trainer", worker_id=self.settings.trainer_id)
        buries = None if self.settings.is_observer else self._dead_letters
        self._control = ControlFollower(self._kafka, dead_letters=buries)
        self._announcements = Announcements(self._publisher, self._control, self.settings.trainer_id)
        self._former = self._new_former(None)
        self._restored: StreamState | None = None
        self._sought: Mapping[int, int] | None = None
        self._has_begun = False
        self._undelivered: TrainingBatch | None = None
        """Formed, and counted as delivered, while the wait for it may still be cut off."""
        self._fetched: deque[Record] = deque()
        self._has_warned_of_full_buffer = False
        self._followed_start: int | None = None
        self._heard: dict[str, ProducerProgress] = {}
        self._marks: dict[int, int] = {}
        self._saved_positions: Mapping[int, int] = {}
        """Those of the newest ``state_dict``."""
        self._saved_policies: deque[PublishedPolicy] = deque(maxlen=2)
        """Of the newest ``state_dict``, and the one before: a trainer may be killed while it writes the newest."""
        self._sizes = RecordSizes()
        self._watch = RetentionWatch(self._kafka, self._log.topic, self.settings, self._standing)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> AsyncTrajectoryStream:
        try:
            await self._stack.enter_async_context(self._log)
            await self._stack.enter_async_context(self._publisher)
            await self._stack.enter_async_context(self._dead_letters)
            await self._stack.enter_async_context(self._control)
            await self._stack.enter_async_context(self._watch)
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, tb)

    def __aiter__(self) -> AsyncTrajectoryStream:
        return self

    async def __anext__(self) -> TrainingBatch:
        """The next batch; asking for it says that the one before is finished. Cut off while it waits, it loses nothing.

        Raises:
            TimeoutError: none within ``timeout_s``; says what is missing. Asking again goes on waiting.
            DataLossError: records that were still needed are gone.
            TransientError: the broker does not answer.
        """
        await self._begin()
        if self._undelivered is None:
            self._former.finish_batch()
        started = time.monotonic()
        while True:
            if self._watch.lost is not None:
                raise self._watch.lost
            self._hear()
            batch = self._undelivered = self._undelivered or self._former.next_batch()
            self._hand_over_evaluations()
            if batch is not None:
                await self._tell_if_possible()
                self._undelivered = None
                return batch
            await self._tell()
            if self._former.has_ended:
                raise StopAsyncIteration
            if time.monotonic() - started > self.settings.timeout_s:
                raise TimeoutError(await self._explanation(time.monotonic() - started))
            await self._take_in()

    async def publish_policy(self, version: int, directory: str | Path, *, target_uri: str | None = None) -> None:
        """Announce the weights in ``directory`` as policy ``version``; returns when the broker has the announcement.

        With ``target_uri`` (a path or an fsspec URL) they are copied there, with the setting ``policy_store`` to
        ``<store>/<lineage>-<version>``; with neither the directory is made final where it lies (a manifest is added).
        What is published must stay while workers may load it: ``prune_policies`` removes what nobody needs.
        A directory with a PEFT adapter is a LoRA policy.

        Raises:
            SettingsError: the version does not follow the last one, or this stream is an observer.
            PolicyFilesError: files are missing, or the disk is full; nothing is announced.
            TransientError: the broker did not acknowledge; repeat with the same version.
        """
        await self._begin_to_lead("an observer publishes no policy")
        self._former.check_version(version)
        identity = PolicyIdentity(self._former.lineage, version)
        if target_uri is None and self.settings.policy_store is not None:
            target_uri = f"{self.settings.policy_store.rstrip('/')}/{identity.lineage}-{identity.version}"
        policy = await publish_policy(
            self._publisher, identity=identity, directory=Path(directory), target_uri=target_uri
        )
        self._former.published(version, policy)
        await self._tell()

    async def roll_back(self, version: int, *, root: str | Path | None = None) -> str:
        """Have workers go back to an older version of this trainer's history, and count from there.

        A new lineage begins at that version, so that workers load it although its number is smaller; trajectories that
        younger versions drew count with their distance through the fork. Load the same weights into the trainer before
        its next step. Returns, after the broker's acknowledgement, the URI of the version's files.

        Args:
            version: published before, at most the present one.
            root: below which it lies; by default the setting ``policy_store``.

        Raises:
            SettingsError: it lies in the future, no root is known, or this stream is an observer.
            PolicyFilesError: its files are not there any more; nothing has changed.
            TransientError: not acknowledged; repeat it.
        """
        await self._begin_to_lead("an observer rolls nothing back", is_rolling_back=True)
        former = self._former
        if not 0 <= version <= former.version:
            raise SettingsError(f"cannot roll back to version {version}: the trainer is at {former.version}")
        stored = await find_policy(self._policy_root(root), former.ancestry, version)
        lineage = await self._announcements.start(former.ancestry.at(version))
        identity = PolicyIdentity(lineage, version)
        policy = PublishedPolicy(uri=stored.uri, manifest_sha256=stored.manifest_sha256, kind=stored.kind)
        await announce_policy(self._publisher, identity=identity, policy=policy)
        former.rolled_back(former.ancestry.rolled_back(lineage, version), version, policy)
        await self._tell()
        return stored.uri

    async def prune_policies(
        self, root: str | Path | None = None, *, keep: int = 2, every: int | None = None
    ) -> list[str]:
        """Remove published policies that nobody needs any more; returns the URIs of what is gone. Safe to repeat.

        What stays: the ``keep`` newest, the announced one, those of the two newest ``state_dict()``, what workers draw
        from, what is leased (evaluations), and each version that is a multiple of ``every``. Only directories directly
        below ``root`` are touched that ``publish_policy`` has sealed, and in them only the files it sealed.

        Raises:
            SettingsError: no root is known, another trainer has taken over, or this stream is an observer.
            PolicyFilesError: the storage cannot be listed.
        """
        await self._begin_to_lead("an observer removes no policies")
        if keep < 1:
            raise SettingsError(f"keep={keep}: the newest policy must stay, keep at least 1")
        saved = frozenset(policy.manifest_sha256 for policy in self._saved_policies)
        removed = await prune_policies(
            self._policy_root(root), self._control, checkpointed=saved, keep=keep, every=every
        )
        return [policy.uri for policy in removed]

    def state_dict(self) -> dict[str, Any]:
        """The stream's part of a checkpoint, of plain types. Every batch delivered so far counts as trained on.

        Raises:
            SettingsError: the wait for a batch was cut off when that was formed already: ask again before.
        """
        self._check_nothing_in_hand("state_dict()")
        state = msgspec.structs.replace(self._former.state(), marks=dict(self._marks))
        self._saved_positions = state.positions
        self._note_saved(state.policy)
        return state.to_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; before the first batch and the first policy.

        Raises:
            SettingsError: it is too late, or the state is of another topic or run.
        """
        if self._has_begun:
            raise SettingsError("load_state_dict() after the first batch or policy: call it right after opening")
        if self._sought is not None:
            raise SettingsError(
                "load_state_dict() after seek(): a checkpoint says itself where to go on, leave out one"
            )
        self._restored = StreamState.from_dict(state, topic=self._log.topic, run_id=self.settings.run_id)
        self._former = self._new_former(self._restored)
        self._marks = dict(self._restored.marks)
        self._saved_positions = self._restored.positions
        self._note_saved(self._restored.policy)

    async def seek(self, to: SeekTarget) -> None:
        """Begin elsewhere than at the earliest record; before the first batch and the first policy. See ``SeekTarget``.

        Groups that were emitted by now and have no record from there to the present end are passed over: counted as
        ``skipped``, with their places given back. Of groups that the position cuts in two, the deadline decides.

        Raises:
            SettingsError: it is too late, a checkpoint was loaded, or the topic has no such place.
            TransientError: the broker does not answer.
        """
        if self._has_begun:
            raise SettingsError("seek() after the first batch or policy: call it right after opening")
        if self._restored is not None:
            raise SettingsError(
                "seek() after load_state_dict(): a checkpoint says itself where to go on, leave out one"
            )
        self._sought = await find_offsets(self._log, to, run_id=self.settings.run_id)

    async def commit(self) -> None:
        """Show the present positions as offsets of the consumer group; for dashboards, nothing starts from them."""
        await self._log.commit(self._former.state().positions)

    def stats(self) -> StreamStats:
        """Counters and sizes now."""
        return replace(self._former.stats(), retention_left=self._watch.left)

    def _new_former(self, state: StreamState | None) -> BatchFormer:
        awaits_evaluations = self._on_evaluation is not None
        return BatchFormer(self.settings, self._log.topic, state, awaits_evaluations=awaits_evaluations)

    async def _begin(self) -> None:
        if self._has_begun:
            return
        await self._seek()
        if not self.settings.is_observer:
            await self._start_trainer()
        self._watch.begin()
        self._has_begun = True

    def _check_nothing_in_hand(self, step: str) -> None:
        if self._undelivered is not None:
            raise SettingsError(f"a batch is formed and not delivered, its wait was cut off: ask for it before {step}")

    async def _begin_to_lead(self, refusal: str, *, is_rolling_back: bool = False) -> None:
        """What only the one trainer may do that everybody follows."""
        if self.settings.is_observer:
            raise SettingsError(f"{refusal}: open the stream without is_observer")
        self._check_nothing_in_hand("the next policy")
        await self._begin()
        self._announcements.check_not_succeeded(self._former.lineage, is_rolling_back=is_rolling_back)

    def _note_saved(self, policy: PublishedPolicy | None) -> None:
        if policy is not None and policy not in self._saved_policies:
            self._saved_policies.append(policy)

    def _policy_root(self, root: str | Path | None) -> str:
        found = self.settings.policy_store if root is None else str(root)
        if found is None:
            raise SettingsError("which policies? give root=…, or open the stream with policy_store=…")
        return found if "://" in found else str(Path(found).resolve())

    async def _seek(self) -> None:
        restored, beginnings = self._restored, await self._log.beginning_offsets()
        if restored is not None:
            starts = await self._log.seek(restored.starts(beginnings), read_before=restored.read_to)
        elif self._sought is not None:
            starts = await self._log.seek(self._sought)
            if starts != beginnings:
                emitted = {p.run_id: p.groups_emitted for p in self._control.all(ProducerProgress).values()}
                self._former.pass_over(PassedOver(ends=await self._log.end_offsets(), emitted=emitted))
        else:
            starts = await self._log.seek({})
            cut = {partition: offset for partition, offset in starts.items() if offset > 0}
            if cut:
                logger.warning(
                    "%s begins at offsets %s: older trajectories are deleted, and groups whose members were among them "
                    "stay incomplete until their deadline (%.0f s)",
                    self._log.topic,
                    cut,
                    self.settings.group_deadline_s,
                )
        self._former.begin_at(starts)

    async def _start_trainer(self) -> None:
        restored = self._restored
        lineage = await self._announcements.start((restored.lineage, restored.version) if restored else None)
        self._former.open_lineage(lineage, is_restored=restored is not None)
        if restored is not None and not await self._announcements.renew_policy(restored, lineage):
            self._former.forget_policy()

    def _hear(self) -> None:
        """Take over what `control` says."""
        now_s = time.monotonic()
        for progress in self._control.all(ProducerProgress).values():
            if self._heard.get(progress.run_id) != progress:
                self._heard[progress.run_id] = progress
                self._former.note_progress(progress, now_s)
        if self.settings.is_observer:
            self._follow_trainer()

    def _follow_trainer(self) -> None:
        start, policy = self._control.latest(TrainerStart), self._control.latest(PolicyVersion)
        if start is not None and start[1] != self._followed_start:
            self._followed_start = start[1]
            self._former.follow(self._former.ancestry.succeeded(start[1], start[0]), start[0].parent_version or 0)
        if policy is None or policy[0].lineage != self._former.lineage:
            return
        if policy[0].version != self._former.version:
            self._former.follow(self._former.ancestry, policy[0].version)

    async def _tell(self) -> None:
        if not self.settings.is_observer:
            await self._announcements.tell(self._former.stats())
            if self.settings.partial_groups == "backfill" and self._former.has_caught_up:
                runs = [run.run_id for run in self._heard.values() if run.is_train]
                followed = [run_id for run_id in runs if self.settings.run_id in (None, run_id)]
                wanted = {run_id: [] for run_id in followed} | self._former.wanted()
                await self._announcements.ask(wanted, run_id=self.settings.run_id)

    async def _tell_if_possible(self) -> None:
        """A batch that is formed is delivered all the same; what could not be told is told with the next word."""
        try:
            await self._tell()
        except TransientError as error:
            logger.warning("producers do not know yet how far this trainer is: %s", error)

    def _hand_over_evaluations(self) -> None:
        for group in self._former.take_evaluations():
            if self._on_evaluation is not None:
                self._on_evaluation(group)

    async def _take_in(self) -> None:
        """Add records until there may be a batch, or it is someone else's turn."""
        self._warn_of_full_buffer()
        if not self._fetched:
            self._fetched.extend(await self._log.fetch(timeout_s=FETCH_WAIT_S, max_records=self._records_to_fetch()))
        if not self._fetched:
            await self._expire()
            return
        for _ in range(min(RECORDS_PER_TURN, len(self._fetched))):
            await self._add(self._fetched[0])
            self._fetched.popleft()
            if not self._former.is_settled:
                return
        await asyncio.sleep(0)

    def _records_to_fetch(self) -> int:
        """With a full buffer one at a time: only further members can complete a batch."""
        return 1 if self._former.is_full else FETCH_RECORDS

    def _warn_of_full_buffer(self) -> None:
        if self._has_warned_of_full_buffer or not self._former.is_full:
            return
        self._has_warned_of_full_buffer = True
        stats = self._former.stats()
        logger.warning(
            "buffer_bytes (%d) are full with %d ready and %d open groups, and a batch needs %d: the trainer reads on "
            "until there is one; raise buffer_bytes, or lower groups_per_batch or pipeline_depth",
            self.settings.buffer_bytes,
            stats.groups_ready,
            stats.groups_open,
            self.settings.groups_per_batch,
        )

    async def _add(self, record: Record) -> None:
        if self._restored is not None and self._restored.is_of_other_log(
            record.partition, record.offset, record.timestamp
        ):
            sign = f"record {record.offset} is another one than before the checkpoint"
            raise DataLossError(made_anew(self._log.topic, record.partition, sign))
        try:
            trajectory = decode_record(record, Trajectory)
            self._former.add(trajectory, record.partition, record.offset, time.monotonic())
        except InvalidMessageError as error:
            await self._bury(record, error)
        if self._former.is_new(record.partition, record.offset):
            self._marks[record.partition] = record.timestamp
        self._sizes.count(record)

    def _standing(self) -> Standing:
        """What is needed: by this trainer, and by the one that would go on from the newest checkpoint."""
        state = self._former.state()
        needed = {p: min(offset, self._saved_positions.get(p, offset)) for p, offset in state.positions.items()}
        return Standing(needed, self._former.read_to, self._sizes.bytes_each)

    async def _bury(self, record: Record, error: InvalidMessageError) -> None:
        logger.error("%s cannot be used: %s", record_place(record), error)
        if self._former.is_new(record.partition, record.offset) and not self.settings.is_observer:
            await self._dead_letters.bury(record, error, deadline_s=PUBLISH_DEADLINE_S)
        self._former.skip(record.partition, record.offset)

    async def _expire(self) -> None:
        """Close groups past their deadline, but only when nothing that belongs to them lies unread."""
        now_s = time.monotonic()
        if self._former.has_overdue(now_s) and await self._lag() == 0:
            self._former.expire(now_s)

    async def _lag(self) -> int:
        ends = await self._log.end_offsets()
        return sum(max(0, end - self._former.read_to[partition]) for partition, end in ends.items())

    async def _explanation(self, waited_s: float) -> str:
        try:
            lag_records = await self._lag()
        except TransientError:
            lag_records = None
        followed = [p for p in self._heard.values() if self.settings.run_id in (None, p.run_id)]
        return explain_wait(
            waited_s,
            groups_per_batch=self.settings.groups_per_batch,
            stats=self._former.stats(),
            open_groups=self._former.open_groups(),
            held_for=self._former.held_for,
            lag_records=lag_records,
            producers=followed,
            workers=self._control.all(WorkerStatus).values(),
            now_s=time.time(),
            needs_scorers=self.settings.topic != "trajectories",
        )
