"""Which letters can be sent again, and as what. Pure.

A task becomes a task of a new run, with ids of its own: the old ones are done and seen everywhere. The run, its groups
and its members are written down as a plan before the first of them is sent, so that a replay that is repeated, after a
crash or by hand, sends the same tasks under the same ids, which every reader knows already.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import msgspec

from rollstream.schemas import ids
from rollstream.schemas.codec import decode
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.rules import MAX_ID_CHARS
from rollstream.schemas.tasks import RolloutTask
from rollstream.schemas.trajectories import Trajectory
from rollstream.transport.dead_letter_box.letters import LetterId, ReplayPlan
from rollstream.transport.topics import SCORED
from rollstream.transport.unreadable import UNREADABLE_SCHEMA

MAX_PLAN_LETTERS = 10_000
REPLAY_OF = "replay_of"
"""Field of ``extra`` that says which task was sent again."""
REPLAY_OF_BYTES = 8 * 1024
"""Room for it: two ids of any length, in four bytes per character."""

_REPLAY_SUFFIX = re.compile(r"\.replay-[0-9a-f]{12}$")
_REFUSED = {
    "journal": "the order of the journal is what counts in it; at its end this record would say something else",
    "tool-calls": "its deadline is over and nobody waits for the answer: the episode has asked again or ended",
    "tool-results": "nobody waits for it any more: the episode has asked again or ended",
    "control": "an old fact would replace newer ones; whoever can read it finds it on the topic, which keeps the "
    "newest record of each key",
    "dead-letters": "it was never a letter; there is nothing in it to send again",
}


@dataclass(frozen=True, slots=True)
class TaskLetter:
    """A letter with a task in it."""

    id: LetterId
    run_id: str
    group_index: int
    member_index: int
    is_train: bool


@dataclass(frozen=True, slots=True)
class CopyLetter:
    """A letter with a trajectory in it: the same bytes are appended to the topic; the first record with an id wins."""

    id: LetterId


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that cannot be sent again."""

    id: LetterId
    reason: str


def assess(letter: DeadLetter, prefix: str, *, max_task_bytes: int) -> TaskLetter | CopyLetter | Refusal:
    """What replaying the letter would do, with the messages as this version knows them.

    Args:
        letter: the whole letter.
        prefix: of all topics.
        max_task_bytes: largest value that fits into the topic of tasks.
    """
    letter_id = LetterId.of(letter)
    short = letter.origin_topic.removeprefix(prefix)
    refused = _REFUSED.get(short.partition(".")[0])
    if refused is None and short not in ("tasks", "trajectories", SCORED):
        refused = f"{letter.origin_topic!r} is no topic of ours"
    if refused is None and letter.bytes_missing:
        refused = f"{letter.bytes_missing} bytes of the record did not fit into its letter"
    if refused is None and short == "tasks" and len(letter.value or b"") + REPLAY_OF_BYTES > max_task_bytes:
        refused = "it is as large as a task can be, and there is no room to say what it was"
    if refused is None and ("schema", UNREADABLE_SCHEMA) in letter.headers:
        refused = (
            f"the record could not be taken apart; its bytes are at {letter_id.text} as long as the topic keeps them"
        )
    if refused is not None:
        return Refusal(letter_id, refused)
    try:
        if short in ("trajectories", SCORED):
            decode(letter.value, letter.headers, Trajectory)
            return CopyLetter(letter_id)
        task = decode(letter.value, letter.headers, RolloutTask)
    except InvalidMessageError as error:
        return Refusal(letter_id, f"it still cannot be decoded: {error}")
    return TaskLetter(letter_id, task.run_id, task.group_index, task.member_index, task.is_train)


def replay_plans(letters: Iterable[TaskLetter], planned_at: float) -> Iterator[ReplayPlan]:
    """Plans for all letters. Members of one group stay together; a run has groups of one size, numbered from 0.

    The ids depend on the letters alone, not on their order or on the time.
    """
    groups: defaultdict[tuple[str, bool, int], list[TaskLetter]] = defaultdict(list)
    for letter in letters:
        groups[letter.run_id, letter.is_train, letter.group_index].append(letter)
    by_size: defaultdict[tuple[str, bool, int], list[LetterId]] = defaultdict(list)
    for (run_id, is_train, _), members in sorted(groups.items()):
        ordered = sorted(members, key=lambda member: (member.member_index, member.id))
        by_size[run_id, is_train, len(ordered)] += [member.id for member in ordered]
    for (run_id, _, size), planned in sorted(by_size.items()):
        step = max(1, MAX_PLAN_LETTERS // size) * size
        for start in range(0, len(planned), step):
            part = tuple(planned[start : start + step])
            yield ReplayPlan(replay_run_id(run_id, part), part, size, planned_at)


def replay_run_id(run_id: str, letters: Iterable[LetterId]) -> str:
    """The run of a replay: ``gsm8k.replay-0123456789ab``; of a replay's replay as well, not a longer one."""
    digest = blake2b("\n".join(letter.text for letter in letters).encode(), digest_size=6).hexdigest()
    suffix = f".replay-{digest}"
    return _REPLAY_SUFFIX.sub("", run_id)[: MAX_ID_CHARS - len(suffix)] + suffix


def replayed_task(letter: DeadLetter, plan: ReplayPlan, position: int) -> RolloutTask:
    """The task that letter number ``position`` of the plan becomes: a pure function of letter and plan.

    Its time limit begins anew with the plan.

    Raises:
        InvalidMessageError: there is no task in the letter.
    """
    task = decode(letter.value, letter.headers, RolloutTask)
    group_index, member_index = divmod(position, plan.group_size)
    origin = {
        "letter": LetterId.of(letter).text,
        "run_id": task.run_id,
        "group_index": task.group_index,
        "member_index": task.member_index,
        "trajectory_id": task.trajectory_id,
    }
    return msgspec.structs.replace(
        task,
        run_id=plan.run_id,
        group_id=ids.group_id(plan.run_id, group_index),
        group_index=group_index,
        group_size=plan.group_size,
        member_index=member_index,
        trajectory_id=ids.trajectory_id(plan.run_id, group_index, member_index),
        replacement=0,
        created_at=plan.planned_at,
        deadline=_new_deadline(task, plan.planned_at),
        extra={**task.extra, REPLAY_OF: origin},
    )


def _new_deadline(task: RolloutTask, planned_at: float) -> float | None:
    if task.deadline is None or not 0 < task.created_at < task.deadline:
        return None
    return planned_at + task.deadline - task.created_at
