"""The journal of one owned partition: append and wait until the record has been read back (W3)."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Awaitable, Callable

from rollstream.schemas.errors import TransientError
from rollstream.schemas.journal import JournalRecord
from rollstream.transport.journal.currency import Currency
from rollstream.transport.journal.journal import held
from rollstream.transport.journal.partition_fold import PartitionFold
from rollstream.transport.journal.task_state import PartitionLostError, TaskState
from rollstream.transport.metrics import JOURNAL_SECONDS

logger = logging.getLogger(__name__)

READ_BACK_WARNING_S = 30.0
CURRENCY_PAUSE_S = 0.05

Send = Callable[[JournalRecord], Awaitable[int]]
"""Sends a record to the partition and returns its offset when the broker has it; raises TransientError."""


class OwnedPartition:
    """A `Journal`. Its tail is read by ``JournalKeeper``, which folds the records and calls ``notify``.

    Once closed, everything raises PartitionLostError: nobody reads the tail any more.
    """

    def __init__(self, fold: PartitionFold, send: Send, currency: Currency) -> None:
        self.fold = fold
        self._send = send
        self._currency = currency
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._serial = 0
        self._is_closed = False

    def state(self, trajectory_id: str) -> TaskState | None:
        """See ``Journal``."""
        self._check_owned()
        return self.fold.tasks.get(trajectory_id)

    def is_current(self) -> bool:
        """See ``Journal``."""
        return self._currency.is_held

    async def until_current(self) -> None:
        """See ``Journal``."""
        while not self.is_current():
            self._check_owned()
            await asyncio.sleep(CURRENCY_PAUSE_S)

    async def append(self, record: JournalRecord) -> TaskState:
        """See ``Journal``. A broker that is away is waited for."""
        started = time.monotonic()
        while (state := held(self.state(record.trajectory_id), record)) is None:
            try:
                offset = await self._send(record)
            except TransientError as error:
                logger.warning("the journal still waits for the broker: %s", error)
                continue
            await self.read_past(offset)
        JOURNAL_SECONDS.labels(record.kind).observe(time.monotonic() - started)
        return state

    async def read_past(self, offset: int) -> None:
        """Return when the record at ``offset`` has been folded.

        Raises:
            PartitionLostError: it never will be.
        """
        while self.fold.position <= offset:
            self._check_owned()
            folded = asyncio.get_running_loop().create_future()
            self._serial += 1
            heapq.heappush(self._waiting, (offset, self._serial, folded))
            done, _ = await asyncio.wait([folded], timeout=READ_BACK_WARNING_S)
            if not done:
                logger.warning("record %d of the journal is not read back yet, at %d", offset, self.fold.position)
                folded.cancel()

    def notify(self) -> None:
        """The fold has moved on: wake those whose records are in it."""
        while self._waiting and self._waiting[0][0] < self.fold.position:
            _, _, folded = heapq.heappop(self._waiting)
            if not folded.done():
                folded.set_result(None)

    def close(self) -> None:
        """The partition has left."""
        self._is_closed = True
        while self._waiting:
            _, _, folded = heapq.heappop(self._waiting)
            if not folded.done():
                folded.set_result(None)

    def _check_owned(self) -> None:
        if self._is_closed:
            raise PartitionLostError("the partition has left this worker")
