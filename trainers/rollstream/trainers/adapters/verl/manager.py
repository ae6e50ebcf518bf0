"""verl's agent loop manager, with RollStream's workers in the place of verl's own.

Duty: every prompt that verl dispatches becomes the tasks of a group; its trajectories become rows of the TransferQueue,
and the prompt's status there becomes ``finished`` or ``failure``; Hugging Face weights that verl saves become policies.

Invariants: a prompt that was dispatched is settled once, whatever happens to its rollouts; rows are there before the
status; the weights of a step are announced before the tasks of the next.

Crash: a manager has a run of its own, so a restarted trainer never meets trajectories of before. verl dispatches the
prompts again that it had in flight (its asynchronous modes from their checkpoint, the synchronous one by repeating the
step), and trains on each group at most once, since rows live in the TransferQueue only. Old tasks that no worker has
begun end at their deadline. Kafka away: what is in flight waits; beyond the budget every group becomes a failure, and
the next dispatch raises.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from rollstream.schemas import ids
from rollstream.schemas.control import TrainerStart
from rollstream.schemas.errors import (
    InvalidMessageError,
    PolicyFilesError,
    SettingsError,
    TransientError,
    single_errors,
)
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.adapters.verl import tensors
from rollstream.trainers.adapters.verl.options import plain_config, read_options, read_rollout_config
from rollstream.trainers.adapters.verl.prompts import VerlPrompt, prompt_tasks, read_prompt
from rollstream.trainers.adapters.verl.rows import PendingGroups, SettledGroup
from rollstream.trainers.adapters.verl.saved_weights import newest_weights
from rollstream.trainers.policies import publish_policy
from rollstream.trainers.trajectory_log import TrajectoryLog
from rollstream.transport.control import control_key
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.publisher import Publisher
from rollstream.transport.records import Record, decode_record, record_place
from rollstream.transport.topic_admin import topic_partitions

logger = logging.getLogger(__name__)

T = TypeVar("T")

FETCH_WAIT_S = 0.5
KAFKA_BUDGET_S = 300.0
"""The broker may refuse for this long before everything in flight is a failure."""
EXPIRY_GRACE_S = 60.0
"""A group past its deadline is waited for this much longer while there are records that have not been read."""
START_DEADLINE_S = 120.0
DISPATCH_DEADLINE_S = 600.0


class RollStreamManager:
    """Made by verl through ``create``; ``generate_sequences`` is called by one thread."""

    def __init__(self, config: Any) -> None:
        """Connects to nothing yet.

        Args:
            config: verl's whole configuration, with a section ``rollstream``.

        Raises:
            SettingsError: the section is missing or wrong.
        """
        plain = plain_config(config)
        self._options = read_options(plain)
        self._config = read_rollout_config(plain)
        self.run_id = f"{self._options.run_id}-{uuid.uuid4().hex[:12]}"
        self._pending = PendingGroups(self.run_id)
        self._groups_emitted = 0
        self._version = 0
        self._lineage = 0
        self._partitions = 1
        self._answered_s = time.monotonic()
        self._publisher = Publisher(self._options.kafka, profile="durable")
        self._log = TrajectoryLog(self._options.kafka)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollstream-verl", daemon=True)
        self._ready: Future[None] = Future()
        self._close: asyncio.Event | None = None
        self._owner: Future[None] | None = None

    @classmethod
    def create(
        cls,
        config: Any,
        llm_client: Any = None,
        teacher_client: Any = None,
        reward_loop_worker_handles: Any = None,
    ) -> RollStreamManager:
        """What verl calls. The engines and reward workers that it has started are not used.

        Raises:
            SettingsError: the configuration is wrong, or verl wants a teacher, which RollStream has not.
            TransientError: the broker does not answer.
        """
        if teacher_client is not None:
            raise SettingsError("distillation from a teacher is not supported: RollStream's workers compute no logits")
        manager = cls(config)
        tensors.attach()
        manager.open()
        return manager

    def open(self) -> None:
        """Connect, and begin to read trajectories."""
        self._thread.start()
        self._owner = asyncio.run_coroutine_threadsafe(self._run(), self._loop)
        try:
            self._ready.result(START_DEADLINE_S)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop reading; groups in flight become failures. Safe to repeat."""
        if not self._thread.is_alive():
            return
        if self._close is not None:
            self._loop.call_soon_threadsafe(self._close.set)
        if self._owner is not None:
            self._owner.exception(START_DEADLINE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def generate_sequences(self, prompts: Any) -> None:
        """Dispatch a batch; returns when its tasks are in the log, not when they are done.

        Args:
            prompts: TensorDict with ``uid``, ``raw_prompt``, ``global_steps`` and the fields of the data set.

        Raises:
            SettingsError: a prompt cannot be a task.
            TransientError: the broker did not take the tasks; or reading trajectories has failed before.
        """
        batch = [read_prompt(row, self._config) for row in tensors.batch_rows(prompts)]
        for prompt in batch:
            tensors.put_status(prompt.uid, prompt.partition_id, "running")
        self._call(self._dispatch(batch), DISPATCH_DEADLINE_S)

    async def _run(self) -> None:
        self._close = asyncio.Event()
        try:
            async with self._publisher, self._log:
                await self._begin()
                self._ready.set_result(None)
                while not self._close.is_set():
                    for settled in await self._read():
                        await self._hand_over(settled)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            raise
        finally:
            for settled in self._pending.give_up():
                await self._hand_over(settled)

    async def _begin(self) -> None:
        kafka = self._options.kafka
        self._partitions = (await topic_partitions(kafka))[kafka.topic("tasks")]
        await self._log.seek(await self._log.end_offsets())
        start = TrainerStart(trainer_id=self.run_id, started_at=time.time())
        self._lineage = (await self._publisher.publish(start, key=control_key(start))).offset

    async def _read(self) -> list[SettledGroup]:
        settled: list[SettledGroup] = []
        records = await self._fetch()
        for record in records:
            try:
                group = self._pending.take(decode_record(record, Trajectory))
            except InvalidMessageError as error:
                logger.warning("%s is no trajectory and is left out: %s", record_place(record), error)
                continue
            settled += [group] if group is not None else []
        grace_s = EXPIRY_GRACE_S if records else 0.0
        return [*settled, *self._pending.expire(time.monotonic() - grace_s)]

    async def _fetch(self) -> list[Record]:
        """The next records; a broker that refuses is asked again within the budget."""
        try:
            records = await self._log.fetch(timeout_s=FETCH_WAIT_S)
        except TransientError as error:
            if time.monotonic() - self._answered_s > KAFKA_BUDGET_S:
                raise
            logger.warning("%s; asking again", error)
            await asyncio.sleep(FETCH_WAIT_S)
            return []
        self._answered_s = time.monotonic()
        return records

    async def _hand_over(self, group: SettledGroup) -> None:
        if group.status == "failure":
            logger.warning("prompt %s is a failure: %s", group.prompt.uid, group.reason)
        await asyncio.to_thread(tensors.put_group, group)

    async def _dispatch(self, batch: Sequence[VerlPrompt]) -> None:
        await self._publish_weights(max(prompt.global_steps for prompt in batch))
        tasks = [
            task
            for place, prompt in enumerate(batch)
            for task in prompt_tasks(
                prompt,
                self._options,
                self._config,
                run_id=self.run_id,
                group_index=self._groups_emitted + place,
                now_s=time.time(),
            )
        ]
        deadline_s = time.monotonic() + self._options.group_deadline_s
        for prompt in batch:
            self._pending.add(self._groups_emitted, prompt, deadline_s=deadline_s)
            self._groups_emitted += 1
        try:
            async with asyncio.TaskGroup() as sending:
                for task in tasks:
                    partition = ids.group_partition(task.group_id, self._partitions)
                    sending.create_task(self._publisher.publish(task, key=task.group_id, partition=partition))
        except ExceptionGroup as errors:
            raise next(single_errors(errors)) from errors

    async def _publish_weights(self, global_steps: int) -> None:
        """Announce what verl has saved last, unless it is of a training that this one does not go on from."""
        if not self._options.publishes_checkpoints:
            return
        saved = await asyncio.to_thread(newest_weights, self._config.checkpoints())
        if saved is None or not self._version < saved.step <= global_steps:
            return
        try:
            identity = PolicyIdentity(self._lineage, saved.step)
            await publish_policy(self._publisher, identity=identity, directory=saved.directory)
        except PolicyFilesError as error:
            logger.warning("weights of step %d are not published: %s", saved.step, error)
            return
        self._version = saved.step

    def _call(self, coroutine: Coroutine[Any, Any, T], deadline_s: float) -> T:
        if self._owner is None or self._owner.done():
            coroutine.close()
            if self._owner is not None:
                self._owner.result()
            raise SettingsError("the manager is not open: make it with RollStreamManager.create(…)")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(deadline_s)
