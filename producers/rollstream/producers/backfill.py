"""Replacements: further rollouts of a member's prompt that a trainer asks for.

Duty: each replacement that the newest `BackfillWanted` of the run names is sent once, as a task of the same group.

Invariants: a replacement's task is a pure function of (run, group, member, replacement) and of the run's choices; what
the topic holds is not sent again. Replacements take no place under the limit: their group has one. Crash: the next
start finds in the topic what was sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence

from rollstream.producers.run_plan import RunPlan
from rollstream.producers.task_building import build_replacement
from rollstream.schemas import ids
from rollstream.schemas.control import BackfillWanted, Pause, ProducerProgress, TrainerProgress, WantedMember
from rollstream.schemas.tasks import RolloutTask
from rollstream.transport.control import ControlFollower

logger = logging.getLogger(__name__)

POLL_S = 0.5
LINGER_S = 300.0
"""How long a run that is sent waits for a silent trainer that has asked for replacements before."""

Send = Callable[[RolloutTask], Coroutine[None, None, None]]


class BackfillDesk:
    """Serves one run.

    Args:
        plan: of the run; prompts are read again by the index of their group.
        control: where wishes are heard.
        is_sent: whether a task with this id is in the topic.
        send: publishes a task; returns when it is acknowledged.
        on_served: called when wishes have been served.
    """

    def __init__(
        self,
        plan: RunPlan,
        control: ControlFollower,
        *,
        is_sent: Callable[[str], bool],
        send: Send,
        on_served: Callable[[], None],
    ) -> None:
        self._plan = plan
        self._settings = plan.settings
        self._control = control
        self._is_sent = is_sent
        self._send = send
        self._on_served = on_served
        self._served: set[str] = set()
        self.replacements_sent = 0

    @property
    def linger_s(self) -> float:
        """How long to wait for a silent trainer when all groups are sent."""
        if self._settings.backfill_linger_s is not None:
            return self._settings.backfill_linger_s
        return LINGER_S if self.wanted() is not None else 0.0

    def wanted(self) -> BackfillWanted | None:
        """The newest wish for this run."""
        return self._control.all(BackfillWanted).get(f"backfill/{self._settings.run_id}")

    async def serve(self, over: asyncio.Event) -> None:
        """Send what is wanted, until ``over``."""
        while not over.is_set():
            if open_wishes := self._open_wishes():
                await self._serve(open_wishes)
            await self._control.wait_for_change(timeout_s=POLL_S)

    async def linger(self, stop: asyncio.Event) -> None:
        """All groups are sent: wait while a trainer may still ask, at most as long as the settings say."""
        heard, heard_at = None, time.monotonic()
        while not stop.is_set():
            trainer, wanted = self._control.latest(TrainerProgress), self.wanted()
            if (trainer, wanted) != heard:
                heard, heard_at = (trainer, wanted), time.monotonic()
            is_silent = time.monotonic() - heard_at >= self.linger_s
            runs = list(self._control.all(ProducerProgress).values())
            if (is_silent and not self._open_wishes()) or has_closed_all(trainer[0] if trainer else None, runs):
                return
            await self._control.wait_for_change(timeout_s=POLL_S)

    def _open_wishes(self) -> list[WantedMember]:
        wanted, pause = self.wanted(), self._control.latest(Pause)
        if wanted is None or (pause is not None and pause[0].is_paused):
            return []
        return [member for member in wanted.members if not self._is_served(self._id_of(member))]

    def _id_of(self, member: WantedMember) -> str:
        return ids.trajectory_id(self._settings.run_id, member.group_index, member.member_index, member.replacement)

    def _is_served(self, trajectory_id: str) -> bool:
        return trajectory_id in self._served or self._is_sent(trajectory_id)

    async def _serve(self, members: Sequence[WantedMember]) -> None:
        tasks = await asyncio.to_thread(self._build, members)
        async with asyncio.TaskGroup() as sending:
            for task in tasks:
                sending.create_task(self._send(task))
        self._served.update(map(self._id_of, members))
        self.replacements_sent += len(tasks)
        self._on_served()

    def _build(self, members: Sequence[WantedMember]) -> list[RolloutTask]:
        tasks: list[RolloutTask] = []
        for member in members:
            prompt = self._plan.prompt(member.group_index)
            if prompt is None or member.member_index >= self._settings.group_size:
                logger.warning("run %s has no such member to replace: %s", self._settings.run_id, member)
                continue
            tasks.append(build_replacement(prompt, self._settings, member, data_source=self._plan.data_source))
        return tasks


def has_closed_all(trainer: TrainerProgress | None, runs: Sequence[ProducerProgress]) -> bool:
    """Whether the trainer has trained on, or dropped, every group of all training runs: nothing is wanted any more."""
    trained = [run for run in runs if run.is_train]
    if trainer is None or not all(run.is_finished for run in trained):
        return False
    return trainer.groups_consumed + trainer.groups_dropped >= sum(run.groups_emitted for run in trained)
