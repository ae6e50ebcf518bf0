from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollstream.producers.run_plan import RunPlan, check_same_run, open_plan
from rollstream.producers.settings import ProducerSettings
from rollstream.producers.task_building import Prompt, Rejection
from rollstream.producers.task_log import TaskLog, check_log
from rollstream.schemas.control import ProducerProgress
from rollstream.schemas.errors import SettingsError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty rows, the sixth (line 6) without a question."""
    rows = [{"question": f"q{n}" if n != 5 else None, "answer": f"#### {n}"} for n in range(20)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Planner:
    """Opens plans on the data and closes them with the test."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._opened: list[RunPlan] = []

    def __call__(self, **changes: Any) -> RunPlan:
        values: dict[str, Any] = {"source": str(self.data), "run_id": "run", "on_bad_row": "skip", **changes}
        self._opened.append(open_plan(ProducerSettings(**values)))
        return self._opened[-1]

    def close(self) -> None:
        for opened in self._opened:
            opened.source.close()


@pytest.fixture
def plan(data: Path) -> Iterator[Planner]:
    planner = Planner(data)
    yield planner
    planner.close()


def places(opened: RunPlan) -> list[int]:
    return [int(built.place.rpartition(":")[2]) for built in opened.prompts()]


@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("on_bad_row", ["skip", "stop"])
def test_the_prompt_of_any_group_can_be_read_again(plan: Planner, is_shuffled: bool, on_bad_row: str) -> None:
    skip = 0 if on_bad_row == "skip" else 6
    opened = plan(is_shuffled=is_shuffled, seed=3, epochs=3, on_bad_row=on_bad_row, skip=skip)
    emitted = [built for built in opened.prompts() if isinstance(built, Prompt)]
    assert len(emitted) == 3 * (19 if on_bad_row == "skip" else 14)
    assert [opened.prompt(index) for index in range(len(emitted))] == emitted
    assert opened.prompt(len(emitted)) is None


def test_rows_come_in_order_and_a_bad_one_is_rejected_in_its_place(plan: Planner) -> None:
    built = list(plan().prompts())
    assert [isinstance(one, Rejection) for one in built].index(True) == 5
    assert sum(isinstance(one, Prompt) for one in built) == 19


def test_stop_refuses_the_whole_file_before_the_first_task(plan: Planner) -> None:
    with pytest.raises(SettingsError, match=r"data\.jsonl:6: column 'question' is missing.*--on-bad-row skip"):
        plan(on_bad_row="stop")
    assert plan(on_bad_row="stop", skip=6).prompts_total == 14


def test_skip_and_limit_choose_rows_before_shuffling(plan: Planner) -> None:
    assert places(plan(skip=3, limit=4)) == [4, 5, 6, 7]
    assert sorted(places(plan(skip=3, limit=4, is_shuffled=True))) == [4, 5, 6, 7]
    assert places(plan(skip=18, limit=100)) == [19, 20]
    with pytest.raises(SettingsError, match="skip=20 leaves none of the 20 rows"):
        plan(skip=20)


def test_every_epoch_has_all_rows_in_an_order_of_its_own(plan: Planner) -> None:
    order = places(plan(is_shuffled=True, seed=1, epochs=2))
    assert sorted(order[:20]) == sorted(order[20:]) == list(range(1, 21))
    assert order[:20] != order[20:]
    assert order == places(plan(is_shuffled=True, seed=1, epochs=2))


def test_more_epochs_continue_a_run(plan: Planner) -> None:
    short, long = plan(epochs=1, is_shuffled=True), plan(epochs=3, is_shuffled=True)
    check_same_run("run", short.fingerprints(), long.fingerprints())
    assert places(long)[:20] == places(short)


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"group_size": 4}, "group_size"),
        ({"is_shuffled": True}, "shuffle"),
        ({"limit": 5}, "rows"),
        ({"system_prompt": "x"}, "system_prompt"),
        ({"sampling": {"temperature": 0.5}}, "sampling"),
        ({"reward": "numeric", "answer_after": "####"}, "answer_extraction, columns, reward"),
        ({"is_train": False}, "is_train"),
    ],
)
def test_other_choices_are_another_run(plan: Planner, changes: dict[str, Any], differing: str) -> None:
    with pytest.raises(SettingsError, match=f"run 'run' was begun with other {differing};"):
        check_same_run("run", plan().fingerprints(), plan(**changes).fingerprints())


def test_other_data_are_another_run(plan: Planner) -> None:
    before = plan().fingerprints()
    plan.data.write_text(plan.data.read_text().replace("q19", "q20"))
    with pytest.raises(SettingsError, match="with other data;"):
        check_same_run("run", before, plan().fingerprints())


def test_an_answer_without_a_reward_is_refused(plan: Planner) -> None:
    with pytest.raises(SettingsError, match="no reward that would use it"):
        plan(answer_after="####")


def progress(groups: int, start_offsets: list[int]) -> ProducerProgress:
    return ProducerProgress(run_id="run", groups_emitted=groups, group_size=4, start_offsets=start_offsets)


def test_a_log_that_cannot_hold_what_was_emitted_is_another_topic() -> None:
    check_log("run", progress(2, [5, 5]), TaskLog([9, 9]), topic="tasks")
    with pytest.raises(SettingsError, match="has grown by 7 records only"):
        check_log("run", progress(2, [5, 5]), TaskLog([9, 8]), topic="tasks")


def test_tasks_that_nobody_accounts_for_are_not_mixed_with() -> None:
    check_log("run", None, TaskLog([3]), topic="tasks")
    with pytest.raises(SettingsError, match="nothing says under which options"):
        check_log("run", None, TaskLog([3], {"id"}), topic="tasks")


def test_a_pinned_policy_is_part_of_what_a_run_is_known_by(plan: Planner) -> None:
    pin = {"lineage": 3, "version": 7, "uri": "s3://b/v7", "manifest_sha256": "0" * 64}
    begun = plan(is_train=False).fingerprints()
    pinned = plan(is_train=False, policy=pin).fingerprints()
    check_same_run("run", pinned, plan(is_train=False, policy=pin).fingerprints())
    for other in (begun, plan(is_train=False, policy={**pin, "version": 8}).fingerprints()):
        with pytest.raises(SettingsError, match="begun with other policy"):
            check_same_run("run", pinned, other)


def test_training_cannot_be_pinned(plan: Planner) -> None:
    with pytest.raises(SettingsError, match="for evaluation only"):
        plan(policy={"lineage": 0, "version": 0})
