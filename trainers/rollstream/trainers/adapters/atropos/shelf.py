"""Groups that wait for an Atropos trainer: taken from the stream while there is room for them.

Invariants: nothing is taken before a trainer has said how long its sequences may be; groups that it could not use are
left out; at most a few batches wait, so that producers wait too when the trainer does.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

from rollstream.trainers.adapters.atropos.registration import Registration
from rollstream.trainers.adapters.atropos.scored_groups import GroupRules, members_of, refusal, scored_group
from rollstream.trainers.adapters.atropos.served_batches import ServedBatches, WaitingGroup
from rollstream.trainers.adapters.group_source import LOOK_S, GroupSource
from rollstream.trainers.batches import TrajectoryGroup

logger = logging.getLogger(__name__)

ODD_SIZES_BATCHES = 8
"""So many batches' worth of groups are looked through for a combination that makes a batch."""
NO_EXAMPLE: dict[str, Any] = {
    key: []
    for key in (
        "tokens",
        "masks",
        "scores",
        "advantages",
        "ref_logprobs",
        "generation_params",
        "inference_logprobs",
        "messages",
        "images",
    )
}


class GroupShelf:
    """Fills a ledger; ``make_room`` is called when groups have left it, or a trainer has come."""

    def __init__(
        self,
        source: GroupSource,
        ledger: ServedBatches,
        rules: GroupRules,
        *,
        max_queued_batches: int,
        registration: Registration | None,
    ) -> None:
        self.registration = registration
        self.latest: dict[str, Any] = NO_EXAMPLE
        """The group taken last."""
        self._source = source
        self._ledger = ledger
        self._rules = rules
        self._max_queued_batches = max_queued_batches
        self._room = asyncio.Event()
        self._has_warned = False

    def make_room(self) -> None:
        """Look again whether there is room."""
        self._room.set()

    async def fill(self, stop: asyncio.Event) -> None:
        """Take groups from the stream while there is room for them."""
        while not stop.is_set():
            self._room.clear()
            state = self._source.state()
            if self._source.has_begun:
                self._ledger.note_state(state)
            if not self._has_room() or self._source.has_ended:
                await self._source.publish_checkpoint()
                await self._wait_for_room()
            group = await self._source.next_group() if self._has_room() else None
            if group is not None:
                self._take_in(group, state)

    def _take_in(self, group: TrajectoryGroup, state: dict[str, Any]) -> None:
        rules = self._rules
        if rules.max_token_len is None and self.registration is not None:
            rules = replace(rules, max_token_len=self.registration.max_token_len)
        members = members_of(group)
        reason = refusal(members, rules)
        if reason is not None:
            logger.info("group %d of run %r is left out: %s", group.group_index, group.run_id, reason)
            return
        self.latest = scored_group(group, members, rules)
        self._ledger.add(
            WaitingGroup(
                key=(group.run_id, group.group_index),
                size=len(members),
                data=self.latest,
                staleness=group.staleness,
                version=self._source.version,
                state_before=state,
            )
        )

    def _has_room(self) -> bool:
        if self.registration is None:
            return False
        batch_size, sequences = self.registration.batch_size, self._ledger.waiting_sequences
        if sequences < self._max_queued_batches * batch_size:
            return True
        if self._ledger.can_form(batch_size):
            return False
        if sequences < ODD_SIZES_BATCHES * batch_size:
            return True
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%d sequences wait in %d groups, and none of these groups make a batch of exactly %d: make the "
                "trainer's batch size a multiple of the group size",
                sequences,
                self._ledger.waiting_groups,
                batch_size,
            )
        return False

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._room.wait()
        except TimeoutError:
            return
