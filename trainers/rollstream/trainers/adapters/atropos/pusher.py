"""Pushes complete groups to a running Atropos server.

Duty: wait until a trainer has registered and asked for its first batch, register as its environment, hand over each
group that the trainer can use, and never let more than a few batches wait in the server's memory.

Invariants: nothing is pushed before the trainer has registered (the server would never recover from it); the state file
moves past a group only after the server's 200; group sizes are such that the server can pack them.

Crash of the pusher: the group whose answer was not seen is pushed again, so one group may come twice. Crash or reset of
the server: the pusher waits for the next registration and goes on behind the last answered group; what waited in the
server's memory is gone with it, as the API has no acknowledgement by the trainer. ``rollstream atropos serve`` has one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.trainers.adapters.atropos.api import AtroposServer, TrainerInfo
from rollstream.trainers.adapters.atropos.scored_groups import (
    GroupRules,
    fitting_size,
    members_of,
    refusal,
    scored_group,
)
from rollstream.trainers.adapters.checkpoints import SETTLE_S, CheckpointWatch
from rollstream.trainers.adapters.group_source import GroupSource
from rollstream.trainers.adapters.progress_file import ProgressFile
from rollstream.trainers.batches import TrajectoryGroup
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How groups are pushed.

    Attributes:
        url: of the Atropos server.
        state_file: where the stream's state is kept.
        env_name: the environment's name in the trainer's logs.
        env_weight: share of this environment among others, as Atropos weighs them.
        rules: which groups are pushed; ``max_token_len`` is the trainer's if it is None.
        max_queued_batches: batches that may wait in the server; more is faster and staler.
        checkpoints: directory in which the trainer saves ``step_<n>``, to be published; None: it is not watched.
        settle_s: a checkpoint is whole when nothing in it has changed for this long.
        poll_s: time between two looks at a server that is not ready.
    """

    url: str
    state_file: Path
    env_name: str = "rollstream"
    env_weight: float = 1.0
    rules: GroupRules = field(default_factory=GroupRules)
    max_queued_batches: int = 3
    checkpoints: Path | None = None
    settle_s: float = SETTLE_S
    poll_s: float = 1.0


@dataclass
class PushCounts:
    """What a pusher has done since it started."""

    pushed: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    """Groups left out, by reason."""
    registrations: int = 0


async def run_pusher(
    kafka: KafkaSettings, trainer: TrainerSettings, options: PushOptions, stop: asyncio.Event
) -> PushCounts:
    """Push until ``stop`` is set or the stream ends.

    Raises:
        SettingsError: no group of this size can ever be in a batch of the trainer's size; the state file is unusable.
        DataLossError: records that were still needed are gone.
        InvalidMessageError: the server refuses a group.
    """
    progress = ProgressFile(options.state_file)
    restored = await asyncio.to_thread(progress.load)
    watch = CheckpointWatch(options.settle_s)
    async with (
        GroupSource(kafka, trainer, restored=restored, checkpoints=options.checkpoints, watch=watch) as source,
        AtroposServer(options.url) as server,
    ):
        pusher = _Pusher(source, server, options, stop)
        while not stop.is_set():
            group = await source.next_group()
            if group is not None:
                if not await pusher.deliver(group):
                    break
                await asyncio.to_thread(progress.save, source.state())
                await source.show_progress()
            elif source.has_ended:
                break
    return pusher.counts


@dataclass(frozen=True, slots=True)
class _Registration:
    env_id: int
    trainer: TrainerInfo


class _Pusher:
    def __init__(self, source: GroupSource, server: AtroposServer, options: PushOptions, stop: asyncio.Event) -> None:
        self.counts = PushCounts()
        self._source = source
        self._server = server
        self._options = options
        self._stop = stop
        self._registered: dict[int, _Registration] = {}
        """By group size; numbers of environments are places in a list that the server forgets with a restart."""

    async def deliver(self, group: TrajectoryGroup) -> bool:
        """Push the group or leave it out; False: stopped before that."""
        while not self._stop.is_set():
            try:
                if await self._try_to_deliver(group):
                    return True
            except TransientError as error:
                logger.warning("%s; registering anew", error)
                self._registered.clear()
            await self._pause()
        return False

    async def _try_to_deliver(self, group: TrajectoryGroup) -> bool:
        registered = self._registered.get(group.group_size) or await self._register(group.group_size)
        if registered is None:
            return False
        rules, batch_size = self._options.rules, registered.trainer.batch_size
        if rules.max_token_len is None:
            rules = replace(rules, max_token_len=registered.trainer.max_token_len)
        members = members_of(group)
        members = members[: fitting_size(len(members), group.group_size, batch_size, rules)]
        reason = refusal(members, rules)
        if reason is not None:
            self.counts.refused[reason] += 1
            return True
        body = scored_group(group, members, rules, env_id=registered.env_id)
        queued = await self._server.queued_groups(registered.env_id)
        if queued is None:
            logger.warning("%s has forgotten its environments; registering anew", self._server.url)
            self._registered.clear()
            return False
        if queued >= max(1, self._options.max_queued_batches * batch_size // group.group_size):
            return False
        await self._server.push(body)
        self.counts.pushed += 1
        return True

    async def _register(self, group_size: int) -> _Registration | None:
        trainer = await self._server.trainer()
        if trainer is None:
            return None
        if trainer.batch_size % group_size != 0:
            raise SettingsError(
                f"the trainer at {self._server.url} takes batches of {trainer.batch_size} sequences, and groups of "
                f"{group_size} can never be packed into them: make its batch size a multiple of {group_size}"
            )
        env_id = await self._server.register_env(
            name=self._options.env_name,
            group_size=group_size,
            max_token_len=trainer.max_token_len,
            weight=self._options.env_weight,
        )
        if env_id is None:
            return None
        self.counts.registrations += 1
        self._registered[group_size] = _Registration(env_id, trainer)
        return self._registered[group_size]

    async def _pause(self) -> None:
        """Wait before the next look; checkpoints are published meanwhile, as a full server waits for its trainer."""
        await self._source.publish_checkpoint()
        try:
            async with asyncio.timeout(self._options.poll_s):
                await self._stop.wait()
        except TimeoutError:
            return
