"""Groups one by one, for an adapter that takes the trainer's place at the stream; checkpoints published in between.

The pace is that of the same settings with batches: ``(pipeline_depth + 1) * groups_per_batch`` groups under way, and a
group is finished when the next is asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from rollstream.schemas.errors import PolicyFilesError
from rollstream.trainers.adapters.checkpoints import CheckpointWatch, checkpoint_path, looks_at
from rollstream.trainers.batches import TrajectoryGroup
from rollstream.trainers.settings import StreamOptions, TrainerSettings
from rollstream.trainers.stream import AsyncTrajectoryStream
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""A wait for a group is interrupted this often, to look at checkpoints and at the wish to stop."""


def unbatched(settings: TrainerSettings) -> StreamOptions:
    """The same pace and the same end in batches of one group."""
    under_way = (settings.pipeline_depth + 1) * settings.groups_per_batch
    limit = settings.max_batches
    options = {
        **settings.model_dump(),
        "groups_per_batch": 1,
        "pipeline_depth": under_way - 1,
        "max_batches": None if limit is None else limit * settings.groups_per_batch,
        "timeout_s": LOOK_S,
    }
    return cast("StreamOptions", options)


class GroupSource:
    """An async context manager; used by one task at a time."""

    def __init__(
        self,
        kafka: KafkaSettings,
        trainer: TrainerSettings,
        *,
        restored: Mapping[str, Any] | None = None,
        checkpoints: Path | None = None,
        watch: CheckpointWatch | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            kafka: cluster and topics.
            trainer: settings of the stream.
            restored: what ``state()`` returned once; None: begin at the earliest trajectory.
            checkpoints: directory in which the trainer saves ``step_<n>``; None: policies are published elsewhere.
            watch: decides when a checkpoint is whole.
        """
        self._stream = AsyncTrajectoryStream(kafka, **unbatched(trainer))
        self._restored = restored
        self._checkpoints = checkpoints
        self._watch = watch or CheckpointWatch()
        self._patience_s = trainer.timeout_s
        self._waiting_since = time.monotonic()
        self.has_begun = False
        """Whether a group has been asked for, so that ``state()`` says where the stream stands."""
        self.has_ended = False
        """Whether every run is finished and all its groups are closed; a further run may begin."""

    async def __aenter__(self) -> GroupSource:
        await self._stream.__aenter__()
        if self._restored is not None:
            self._stream.load_state_dict(self._restored)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stream.__aexit__(exc_type, exc, tb)

    async def next_group(self) -> TrajectoryGroup | None:
        """The next group; None: there was none within ``LOOK_S``, or the stream has ended.

        Raises:
            DataLossError: records that were still needed are gone.
            TransientError: the broker does not answer.
        """
        await self.publish_checkpoint()
        self.has_begun = True
        try:
            batch = await anext(self._stream, None)
        except TimeoutError as error:
            waited_s = time.monotonic() - self._waiting_since
            if waited_s > self._patience_s:
                logger.warning("no group for %.0f s: %s", waited_s, error)
                self._waiting_since = time.monotonic()
            return None
        self._waiting_since = time.monotonic()
        self.has_ended = batch is None
        return None if batch is None else batch.groups[0]

    async def publish_checkpoint(self) -> None:
        """Publish the newest whole checkpoint, if there is a new one."""
        if self._checkpoints is None:
            return
        looks = await asyncio.to_thread(looks_at, self._checkpoints)
        step = self._watch.due(looks, self.version, time.monotonic())
        if step is None:
            return
        path = await asyncio.to_thread(checkpoint_path, self._checkpoints, step)
        if path is None:
            return
        try:
            await self._stream.publish_policy(step, path)
        except PolicyFilesError as error:
            logger.warning("checkpoint %s is not published: %s", path, error)
            return
        logger.info("checkpoint %s is policy version %d", path, step)

    def state(self) -> dict[str, Any]:
        """The stream's state; every group that was returned so far counts as trained on."""
        return self._stream.state_dict()

    async def show_progress(self) -> None:
        """Commit offsets, for dashboards."""
        await self._stream.commit()

    @property
    def version(self) -> int:
        """The newest published policy version."""
        return self._stream.stats().version
