"""What killed and frozen workers cost: generations begun again, and the time until somebody goes on. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evidence import Begun, Injury

HARMLESS = frozenset({"slow_link"})
"""After these a worker goes on by itself, and nobody else has to."""
BLINDING = frozenset(
    {"freeze", "freeze_long", "zombie", "twin", "cut_reset", "cut_black_hole", "cut_answers", "slow_link"}
)
"""After these a worker goes on for a moment with what it knew before."""
REORDERING_S = 0.05
"""Clocks of two processes, and a line written just before its process died."""


@dataclass(frozen=True, slots=True)
class Takeover:
    """An episode that ran on a worker when that was hurt.

    Attributes:
        took_s: from the injury to the next sign of life of the episode: a generation, a record of the journal, or its
            trajectory; None: none came.
        is_clean: nothing else was hurt in between that could have held it up.
    """

    trajectory_id: str
    injury: Injury
    took_s: float | None
    is_clean: bool


@dataclass(frozen=True, slots=True)
class Repetition:
    """A generation that was begun again.

    Attributes:
        in_a_row: how many of the episode were begun again since it last changed hands, this one included.
        is_fair: it was the one that was running, and its process was hurt or another one has taken the episode over; or
            ``is_blind``.
        is_blind: its process was frozen or cut off before and has begun nothing of the episode since.
    """

    trajectory_id: str
    generation: Begun
    in_a_row: int
    is_fair: bool
    is_blind: bool


def find_takeovers(
    begun: Iterable[Begun],
    published: Mapping[str, float],
    signs: Mapping[str, Sequence[float]],
    injuries: Sequence[Injury],
    disturbances: Sequence[Injury],
) -> list[Takeover]:
    """For every injury of a rollout worker the episodes it ran then, and when each went on.

    Args:
        begun: all generations.
        published: moment of the first trajectory, by id.
        signs: when the journal says that somebody worked on it, by id, ascending.
        injuries: those of rollout workers.
        disturbances: everything that was hurt; what overlaps a takeover makes it unclean.
    """
    episodes = by_episode(begun)
    running: dict[tuple[str, int], set[str]] = defaultdict(set)
    for episode, generations in episodes.items():
        for generation in generations:
            running[generation.process].add(episode)
    takeovers: list[Takeover] = []
    for injury in injuries:
        for episode in sorted(running[injury.worker, injury.pid]):
            went_on_at = _went_on_at(episodes[episode], published.get(episode), signs.get(episode, ()), injury)
            if went_on_at is not None:
                takeovers.append(_takeover(episode, injury, went_on_at, disturbances))
    return takeovers


def _went_on_at(
    generations: Sequence[Begun], published_at: float | None, signs: Sequence[float], injury: Injury
) -> float | None:
    """When the episode went on after the injury; None if it did not run there then, infinity if it never did."""
    before = bisect_right(generations, injury.at, key=lambda generation: generation.at)
    if before == 0 or generations[before - 1].process != (injury.worker, injury.pid):
        return None
    if published_at is not None and published_at <= injury.at + REORDERING_S:
        return None
    later = [generation.at for generation in generations[before:]]
    later += signs[bisect_right(signs, injury.at + REORDERING_S) :][:1]
    if published_at is not None:
        later.append(published_at)
    return min(later, default=float("inf"))


def _takeover(episode: str, injury: Injury, went_on_at: float, disturbances: Sequence[Injury]) -> Takeover:
    return Takeover(
        trajectory_id=episode,
        injury=injury,
        took_s=None if went_on_at == float("inf") else went_on_at - injury.at,
        is_clean=not any(
            other is not injury and other.at < went_on_at and other.until > injury.at for other in disturbances
        ),
    )


def find_repetitions(
    begun: Iterable[Begun], moments: Sequence[float], blinded: Iterable[Injury] = ()
) -> list[Repetition]:
    """Every generation that was begun again.

    Args:
        begun: all generations.
        moments: ascending; when a partition may have left a process and come back: something was hurt or healed.
        blinded: injuries after which a process may not know for a moment what others have done meanwhile.
    """
    since: dict[tuple[str, int], list[float]] = defaultdict(list)
    for injury in blinded:
        since[injury.worker, injury.pid].append(injury.at)
    return [
        repetition
        for generations in by_episode(begun).values()
        for repetition in _repetitions(generations, moments, since)
    ]


def _repetitions(
    generations: Sequence[Begun], moments: Sequence[float], blinded: Mapping[tuple[str, int], Sequence[float]]
) -> list[Repetition]:
    found: list[Repetition] = []
    seen: dict[tuple[int, str], Begun] = {}
    newest: dict[tuple[int, str], str] = {}
    last_of: dict[tuple[str, int], float] = {}
    in_a_row = 0
    for generation in generations:
        process = generation.process
        key, lane = (generation.attempt, generation.path), (generation.attempt, lane_of(generation.path))
        last = seen.get(key)
        if last is not None:
            changed_hands = last.process != process or _any_between(moments, last.at, generation.at)
            own_last = last_of.get(process, 0.0)
            was_running = changed_hands and newest[lane] == generation.path
            is_blind = not was_running and any(own_last <= at <= generation.at for at in blinded.get(process, ()))
            is_fair = was_running or is_blind
            in_a_row = 1 if is_fair else in_a_row + 1
            found.append(Repetition(generation.trajectory_id, generation, in_a_row, is_fair, is_blind))
        seen[key] = generation
        newest[lane] = generation.path
        last_of[process] = generation.at
    return found


def _any_between(moments: Sequence[float], start: float, stop: float) -> bool:
    return bisect_right(moments, start) < bisect_right(moments, stop)


def repeated_after(takeovers: Sequence[Takeover], repetitions: Iterable[Repetition]) -> list[int]:
    """For every takeover, in order, the generations begun again until the episode was hit again."""
    repeated: dict[str, list[float]] = defaultdict(list)
    for repetition in repetitions:
        repeated[repetition.trajectory_id].append(repetition.generation.at)
    hits: dict[str, list[float]] = defaultdict(list)
    for takeover in takeovers:
        hits[takeover.trajectory_id].append(takeover.injury.at)
    counts: list[int] = []
    for takeover in takeovers:
        at = takeover.injury.at
        next_at = min((hit for hit in hits[takeover.trajectory_id] if hit > at), default=float("inf"))
        counts.append(sum(at < moment <= next_at for moment in repeated[takeover.trajectory_id]))
    return counts


def by_episode(begun: Iterable[Begun]) -> dict[str, list[Begun]]:
    """Generations by trajectory id, in order of time."""
    episodes: dict[str, list[Begun]] = defaultdict(list)
    for generation in begun:
        episodes[generation.trajectory_id].append(generation)
    for generations in episodes.values():
        generations.sort(key=lambda generation: generation.at)
    return episodes


def lane_of(path: str) -> str:
    """The lane of an effect: ``3.0`` for ``3.0.1``, none for ``3``."""
    return path.rpartition(".")[0]
