"""Why there is no batch yet, in words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from rollstream.schemas.control import ProducerProgress, WorkerStatus
from rollstream.trainers.groups import ArrivingGroup
from rollstream.trainers.holding import AwaitedGroup
from rollstream.trainers.stream_state import StreamStats

SHOWN_GROUPS = 5
PRESUMED_DEAD_INTERVALS = 3


def explain_wait(
    waited_s: float,
    *,
    groups_per_batch: int,
    stats: StreamStats,
    open_groups: Sequence[ArrivingGroup],
    held_for: Sequence[AwaitedGroup] = (),
    lag_records: int | None,
    producers: Iterable[ProducerProgress],
    workers: Collection[WorkerStatus],
    now_s: float,
    needs_scorers: bool = False,
) -> str:
    """What is there, what is missing, and who should have brought it; ``now_s`` in unix seconds."""
    parts = [
        f"no batch after {waited_s:.0f} s: {stats.groups_ready} of {groups_per_batch} groups are complete",
        *_held(held_for),
        f"{stats.groups_open} are open{_open_groups(open_groups)}",
        "the broker does not answer" if lag_records is None else f"{lag_records} records in the topic are unread",
        _producers(list(producers), stats),
        _workers(list(workers), now_s),
        *([_scorers(workers, now_s)] if needs_scorers else []),
    ]
    return "; ".join(parts)


def _held(groups: Sequence[AwaitedGroup]) -> list[str]:
    if not groups:
        return []
    first = groups[0]
    others = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
    text = (
        f"they are held back for group {first.key.group_index} of run {first.key.run_id!r}{others}, which can be "
        f"trained on up to version {first.last_version} (stale='drop' waits for nobody)"
    )
    return [text]


def _open_groups(groups: Sequence[ArrivingGroup]) -> str:
    if not groups:
        return ""
    shown = [
        f"group {group.key.group_index} of run {group.key.run_id!r} lacks "
        + (
            f"replacements of members {sorted(group.wanted)}"
            if group.wanted
            else f"members {sorted(group.missing_members())}"
        )
        for group in groups[:SHOWN_GROUPS]
    ]
    more = [f"and {len(groups) - SHOWN_GROUPS} more"] if len(groups) > SHOWN_GROUPS else []
    return f" ({', '.join([*shown, *more])})"


def _producers(producers: list[ProducerProgress], stats: StreamStats) -> str:
    if not producers:
        return "no producer has reported (is `rollstream produce` running?)"
    runs = [
        f"run {p.run_id!r} has emitted {p.groups_emitted} groups{' and is finished' if p.is_finished else ''}"
        for p in producers
    ]
    return f"{', '.join(runs)}, {stats.emit_limit} may be emitted"


def _workers(workers: list[WorkerStatus], now_s: float) -> str:
    alive, silent = _alive(workers, "rollout-worker", now_s)
    if not alive:
        return f"no rollout worker is alive ({silent} fell silent)"
    return f"{len(alive)} rollout workers are alive with {sum(worker.running for worker in alive)} running episodes"


def _scorers(workers: Iterable[WorkerStatus], now_s: float) -> str:
    alive, silent = _alive(workers, "scorer", now_s)
    if not alive:
        return f"no scorer is alive ({silent} fell silent): `rollstream scorer` fills the topic that is read"
    held = sum(worker.stats.get("held", 0.0) for worker in alive)
    return f"{len(alive)} scorers are alive and hold {held:.0f} trajectories"


def _alive(workers: Iterable[WorkerStatus], role: str, now_s: float) -> tuple[list[WorkerStatus], int]:
    """Those that still beat, and how many have fallen silent."""
    of_role = [worker for worker in workers if worker.role == role and worker.state != "stopped"]
    alive = [worker for worker in of_role if now_s - worker.updated_at <= PRESUMED_DEAD_INTERVALS * worker.interval_s]
    return alive, len(of_role) - len(alive)
