"""Planted bugs: production code with one rule taken out. Each must be found, or the simulation proves nothing.

A plant replaces a function or a method while it is applied; the search for a scenario that shows it runs in a family
of scenarios that favours the situation it is about.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from simulator import plants_in_journal as journal
from simulator import plants_in_roles as roles


@dataclass(frozen=True)
class Plant:
    """A bug: how it is applied, where it is looked for, and in how many seeds it must be found."""

    apply: Callable[[], AbstractContextManager[None]]
    profile: str = "default"
    within: int = 100


PLANTS: dict[str, Plant] = {
    "acknowledged is taken as counted": Plant(journal.acknowledged_is_counted, "zombies", 1500),
    "own memory instead of the first record": Plant(journal.own_memory_first, "zombies", 1500),
    "journal not awaited": Plant(journal.journal_not_awaited),
    "tool call before its generation is journaled": Plant(journal.effects_not_awaited),
    "tool results not journaled": Plant(journal.tool_results_not_journaled),
    "end not journaled": Plant(journal.end_not_journaled),
    "trajectory before its end is journaled": Plant(journal.published_before_end),
    "done before the trajectory is acknowledged": Plant(journal.done_before_published),
    "look into the journal and effect in two steps": Plant(journal.look_then_act, "zombies", 600),
    "intake before the replay is complete": Plant(journal.replay_not_awaited, "poison", 4000),
    "replay from the end": Plant(journal.replay_from_the_end),
    "tail goes on at the end": Plant(journal.tail_at_the_end, "rebalances", 300),
    "floor: unfinished tasks only": Plant(journal.floor_of_unfinished),
    "floor: the end of the journal": Plant(journal.floor_at_the_end),
    "forgotten one task too early": Plant(journal.forgotten_too_early, "zombies", 600),
    "a failure beats a result": Plant(journal.failure_beats_result, "failures", 3000),
    "resumes not counted": Plant(journal.resumes_not_counted, "poison"),
    "start after the body is touched": Plant(journal.start_after_body, "poison"),
    "suspects not run alone": Plant(roles.suspects_together, "poison", 600),
    "a clock that runs on during replay": Plant(roles.clock_during_replay, "clock", 600),
    "commit before done": Plant(roles.finished_at_once),
    "commit past running tasks": Plant(roles.commit_past_running),
    "commits go back": Plant(roles.commits_go_back, "paying zombies", 3000),
    "worked on before it is ready": Plant(roles.worked_on_before_ready, "storms", 1500),
    "letters not written": Plant(roles.letters_not_written, "default", 300),
    "unconfirmed sends taken as sent": Plant(roles.sends_not_repeated),
    "session named by the task": Plant(roles.session_named_by_task, "rebalances", 300),
    "calls by turn instead of token": Plant(roles.sequence_instead_of_token, "tools", 1500),
    "no session check": Plant(roles.no_session_check, "tools", 600),
    "results of one turn from two sandboxes": Plant(roles.any_sandbox, "tools", 3000),
    "no stored results": Plant(roles.no_stored_results, "tools", 600),
    "our time-out becomes data": Plant(roles.timeout_becomes_data, "silence", 600),
    "payment not committed first": Plant(roles.payment_not_committed_first, "payments", 600),
    "every copy of a call is the first": Plant(roles.every_copy_is_first, "payments", 600),
    "checkpoint without closed groups": Plant(roles.checkpoint_without_closed, "trainer", 300),
    "checkpoint at the fetch position": Plant(roles.checkpoint_at_fetch, "trainer", 300),
}
