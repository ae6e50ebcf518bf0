"""Whether a batch is held back for slow groups, so that long episodes are not lost to their age. Pure.

A group that began at version ``s`` can be trained on up to version ``s + max_staleness``, its *last version*. Every
policy raises the trainer's version, so each version has room for the batches from one policy to the next. Groups are
delivered in the order of their last versions; a batch is held back while it would give a place to a group that can
wait, and an open group that cannot would find no place any more.

For each version ``d``, the groups with a last version up to ``d`` that are left after this batch need places in the
batches up to ``d``. If there are too few, and this batch spends a place on a group with a later last version, waiting
may help; if all its groups are as urgent, it cannot. So a producer that was allowed more than ever fits
(``pipeline_depth`` above ``max_staleness``) is not waited for, and a batch is never held back for a group that is too
old already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rollstream.trainers.groups import GroupKey


class AwaitedGroup(NamedTuple):
    """A group that is emitted and still under way."""

    key: GroupKey
    last_version: int
    """The trainer's version at which it can be delivered at the latest."""


def held_for(
    batch: Sequence[float],
    awaited: Sequence[AwaitedGroup],
    *,
    version: int,
    version_step: int,
    groups_per_step: int,
) -> list[AwaitedGroup]:
    """The groups that the batch has to wait for, the most urgent first; empty: deliver it.

    Args:
        batch: last versions of the groups that would be delivered now; infinite where age does not matter.
        awaited: open groups.
        version: the trainer's.
        version_step: by how much a new policy raises it.
        groups_per_step: places in the batches from one policy to the next.
    """
    latest = max(batch, default=float("-inf"))
    urgent = sorted(
        (group for group in awaited if version <= group.last_version < latest),
        key=lambda group: (group.last_version, group.key),
    )
    needed = 0
    for place, group in enumerate(urgent, start=1):
        if place > groups_per_step * ((group.last_version - version) // version_step):
            needed = place
    if not needed:
        return []
    limit = urgent[needed - 1].last_version
    return [group for group in urgent if group.last_version <= limit]
