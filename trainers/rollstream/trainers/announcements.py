"""What a trainer says on `control`: its start, its newest policy, how far producers may go, what it wants replaced."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from rollstream.schemas.control import BackfillWanted, TrainerProgress, TrainerStart, WantedMember
from rollstream.schemas.errors import PolicyFilesError, SettingsError
from rollstream.schemas.rules import MAX_WANTED_MEMBERS
from rollstream.trainers.policies import PUBLISH_DEADLINE_S, announce_policy
from rollstream.trainers.stream_state import StreamState, StreamStats
from rollstream.transport.control import ControlFollower, control_key
from rollstream.transport.policy_manifest import PolicyIdentity
from rollstream.transport.publisher import Publisher

logger = logging.getLogger(__name__)


class Announcements:
    """Of one trainer. Every call returns after the broker's acknowledgement and may be repeated."""

    def __init__(self, publisher: Publisher, control: ControlFollower, trainer_id: str) -> None:
        self._publisher = publisher
        self._control = control
        self._trainer_id = trainer_id
        self._told: tuple[int, int, int, int] | None = None
        self._asked: dict[str, Sequence[WantedMember]] = {}
        self._started: set[int] = set()
        """Lineages that this trainer has begun."""

    async def start(self, parent: tuple[int, int] | None) -> int:
        """Say that the trainer begins, or goes on from (lineage, version) ``parent``; returns its lineage."""
        start = TrainerStart(
            trainer_id=self._trainer_id,
            parent_lineage=parent[0] if parent else None,
            parent_version=parent[1] if parent else None,
            started_at=time.time(),
        )
        place = await self._publisher.publish(start, key=control_key(start), deadline_s=PUBLISH_DEADLINE_S)
        self._started.add(place.offset)
        return place.offset

    async def renew_policy(self, restored: StreamState, lineage: int) -> bool:
        """Announce the policy of a checkpoint under the new lineage; False if its files are gone."""
        if restored.policy is None:
            return True
        try:
            identity = PolicyIdentity(lineage, restored.version)
            await announce_policy(self._publisher, identity=identity, policy=restored.policy)
        except PolicyFilesError as error:
            logger.warning(
                "%s: the policy of the checkpoint (version %d) cannot be announced, workers stay on the abandoned one; "
                "publish the restored weights under the same version",
                error,
                restored.version,
            )
            return False
        return True

    async def tell(self, stats: StreamStats) -> None:
        """Tell producers how far they may go, if that has changed."""
        news = (stats.version, stats.groups_consumed, stats.groups_dropped, stats.emit_limit)
        if news == self._told:
            return
        progress = TrainerProgress(
            trainer_id=self._trainer_id,
            lineage=stats.lineage,
            version=stats.version,
            groups_consumed=stats.groups_consumed,
            groups_dropped=stats.groups_dropped,
            dropped_for={drop: groups for drop, groups in stats.drops.items() if groups},
            emit_limit=stats.emit_limit,
            updated_at=time.time(),
        )
        await self._publisher.publish(progress, key=control_key(progress), deadline_s=PUBLISH_DEADLINE_S)
        self._told = news

    async def ask(self, wanted: Mapping[str, Sequence[WantedMember]], *, run_id: str | None) -> None:
        """Say which replacements are wanted, if that has changed; what was asked for before a restart is taken back.

        Of very many the lowest groups are asked for first, the others as these arrive. A run of which nothing is wanted
        yet is told so once: its producer stays when all is sent, because it may be asked later.
        """
        before = {
            record.run_id: record.members
            for record in self._control.all(BackfillWanted).values()
            if run_id in (None, record.run_id)
        } | self._asked
        for run in sorted(wanted.keys() | before.keys()):
            members = list(wanted.get(run, ()))[:MAX_WANTED_MEMBERS]
            if run in before and members == list(before[run]):
                continue
            message = BackfillWanted(run_id=run, members=members, updated_at=time.time())
            await self._publisher.publish(message, key=control_key(message), deadline_s=PUBLISH_DEADLINE_S)
            self._asked[run] = members

    def check_not_succeeded(self, lineage: int, *, is_rolling_back: bool = False) -> None:
        """Refuse to go on beside a trainer that has started later, or beside an own lineage that was not completed.

        ``is_rolling_back``: what was begun and not completed is begun anew.

        Raises:
            SettingsError: there is one.
        """
        newest = self._control.latest(TrainerStart)
        if newest is None or newest[1] <= lineage:
            return
        if newest[1] not in self._started:
            raise SettingsError(
                f"trainer {newest[0].trainer_id!r} has started after this one on the same topics, and workers follow "
                "the newest: stop one of them, give it a prefix of its own, or open it with is_observer=True"
            )
        if not is_rolling_back:
            raise SettingsError(
                f"roll_back() to version {newest[0].parent_version} was begun and not acknowledged, workers may have "
                "gone back already: repeat it first"
            )
