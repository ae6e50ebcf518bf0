"""What a producer says of its run on `control`: how far it is, and which places under the limit it claims.

Invariants: one record at a time, each with a greater rank than the one before, so whatever lands late is passed over.
Crash: the newest record holds claim and progress; the next start goes on with both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from rollstream.producers.acknowledged import AcknowledgedPrefix
from rollstream.producers.emit_claims import Claim, claim_of
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.control import ProducerProgress
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.publisher import Publisher

REPORT_INTERVAL_S = 0.5
SIGN_OF_LIFE_S = 10.0
"""Places that are claimed and not used are given back by the trainer when their producer is silent for long."""
PUBLISH_DEADLINE_S = 600.0
"""A broker that is away longer than this ends the producer; running it again goes on."""


class RunRecord:
    """The run's `ProducerProgress`.

    Args:
        publisher: to the broker.
        control: where the record is read back.
        settings: of the run.
        fingerprints: of the choices the run goes on under.
    """

    def __init__(
        self,
        publisher: Publisher,
        control: ControlFollower,
        settings: ProducerSettings,
        fingerprints: Mapping[str, str],
    ) -> None:
        self._publisher = publisher
        self._control = control
        self._settings = settings
        self._fingerprints = dict(fingerprints)
        self._acknowledged = AcknowledgedPrefix()
        self._turn = asyncio.Lock()
        self._announced_at = 0.0
        self._announced = 0
        self._is_finished = False
        self.start_offsets: Sequence[int] = ()
        self.before, place = self._found()
        self.groups_before = self.before.groups_emitted if self.before is not None else 0
        self._reserved_before = self.before.groups_reserved if self.before is not None else 0
        self.claim: Claim | None = None
        if self.before is not None:
            self.start_offsets = self.before.start_offsets
            claim = claim_of(self.before, place)
            self.claim = claim if claim.end > claim.start else None

    def _found(self) -> tuple[ProducerProgress | None, int]:
        placed = self._control.placed(ProducerProgress)
        return next(((p, offset) for p, offset in placed if p.run_id == self._settings.run_id), (None, 0))

    def acknowledge(self, group_index: int) -> None:
        """All tasks of the group are in the topic."""
        self._acknowledged.add(group_index)

    def is_read_back(self) -> bool:
        """Whether the newest claim, if there is one, can be judged."""
        return self.claim is None or self._control.has_read(self.claim.place)

    async def claim_places(self, start: int, end: int) -> None:
        """Claim places for groups ``[start, end)``: at the end of the queue, and counted once it is read back."""
        async with self._turn:
            place = await self._publish(Claim(self._settings.run_id, start, end, -1))
            self.claim = Claim(self._settings.run_id, start, end, place)

    async def keep(self, over: asyncio.Event) -> None:
        """Tell everybody how far the run is, at most twice a second, and that it is alive while it holds places."""
        while not over.is_set():
            has_news = self._groups_emitted() > self._announced
            holds_places = self.claim is not None and self.claim.end > self._announced and not self._is_finished
            if has_news or (holds_places and time.monotonic() - self._announced_at > SIGN_OF_LIFE_S):
                await self.announce()
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await over.wait()

    async def announce(self, *, is_finished: bool = False) -> None:
        """Say once how far the run is."""
        async with self._turn:
            self._is_finished = self._is_finished or is_finished
            await self._publish(self.claim)

    def _groups_emitted(self) -> int:
        return max(self._acknowledged.count, self.groups_before)

    async def _publish(self, claim: Claim | None) -> int:
        self._announced, self._announced_at = self._groups_emitted(), time.monotonic()
        message = ProducerProgress(
            run_id=self._settings.run_id,
            groups_emitted=self._announced,
            group_size=self._settings.group_size,
            is_finished=self._is_finished,
            updated_at=time.time(),
            is_train=self._settings.is_train,
            fingerprints=self._fingerprints,
            start_offsets=list(self.start_offsets),
            groups_reserved=max(claim.end if claim is not None else 0, self._reserved_before),
            reserved_from=claim.start if claim is not None else 0,
            reserved_at=claim.place if claim is not None and claim.place >= 0 else None,
        )
        place = await self._publisher.publish(message, key=control_key(message), deadline_s=PUBLISH_DEADLINE_S)
        return place.offset
