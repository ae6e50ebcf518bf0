from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.trajectories import Sample, Trajectory
from rollstream.trainers.adapters.verl.options import RolloutConfig, read_options, read_rollout_config
from rollstream.trainers.adapters.verl.prompts import VerlPrompt, prompt_tasks, read_prompt
from rollstream.trainers.adapters.verl.rows import PendingGroups, SettledGroup, session_rows
from rollstream.trainers.adapters.verl.saved_weights import newest_weights

Make = Callable[..., Trajectory]

ROLLOUT: dict[str, Any] = {
    "n": 4,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": -1,
    "response_length": 32,
    "val_kwargs": {"n": 1, "temperature": 0.0, "top_p": 1.0, "top_k": -1},
}
CONFIG: dict[str, Any] = {
    "actor_rollout_ref": {"rollout": ROLLOUT},
    "trainer": {"default_local_dir": "checkpoints"},
    "rollstream": {"kafka": {"bootstrap": "host:9092"}, "reward": "numeric", "limits": {"max_turns": 3}},
}
ROW: dict[str, Any] = {
    "uid": "u-1",
    "raw_prompt": [{"role": "user", "content": "1 + 1?"}],
    "reward_model": {"ground_truth": "2"},
    "global_steps": 5,
    "agent_name": "single_turn_agent",
}


def rollout_config() -> RolloutConfig:
    return read_rollout_config(CONFIG)


def prompt_of(members: int = 2, **row: Any) -> VerlPrompt:
    return read_prompt({**ROW, "__rollout_n__": members, **row}, rollout_config())


def with_section(**changes: Any) -> Mapping[str, Any]:
    return {**CONFIG, "rollstream": {**CONFIG["rollstream"], **changes}}


def sample_of(prompt: int, response: int) -> Sample:
    return Sample(
        prompt_ids=np.arange(prompt, dtype=np.int32),
        response_ids=np.arange(100, 100 + response, dtype=np.int32),
        response_mask=(np.arange(response) % 2 == 0).astype(np.uint8),
        response_logprobs=np.full(response, -0.5, dtype=np.float32),
        version_spans=[],
        turns=[],
    )


@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4), reward=st.floats(-2, 2)
)
def test_rows_are_ragged_and_aligned_with_the_reward_on_the_last_token(
    lengths: list[tuple[int, int]], reward: float, make_trajectory: Make
) -> None:
    trajectory = make_trajectory(0, 1, reward=reward)
    trajectory.samples[:] = [sample_of(*length) for length in lengths]
    rows = session_rows(trajectory, prompt_of())
    assert [row.key for row in rows] == [f"u-1_1_{index}" for index in range(len(lengths))]
    for row, (prompt, response) in zip(rows, lengths, strict=True):
        fields = row.fields
        assert fields["input_ids"].tolist() == fields["prompts"].tolist() + fields["responses"].tolist()
        assert len(fields["position_ids"]) == row.tag["seq_len"] == prompt + response
        assert {len(fields[name]) for name in ("responses", "response_mask", "rollout_log_probs", "rm_scores")} == {
            response
        }
        assert (fields["rollout_log_probs"][fields["response_mask"] == 0] == 0).all()
        assert fields["rm_scores"].sum() == fields["rm_scores"][-1] == np.float32(reward)
        assert {fields[name].dtype for name in ("prompts", "responses", "response_mask")} == {np.dtype(np.int64)}
        assert {fields[name].dtype for name in ("rollout_log_probs", "rm_scores")} == {np.dtype(np.float32)}


def test_versions_are_whole_numbers_and_fields_of_the_data_set_come_back(make_trajectory: Make) -> None:
    [row] = session_rows(make_trajectory(0, 0, version=7), prompt_of(extra_info={"a": 1}, validate=False))
    assert (row.tag["min_global_steps"], row.tag["max_global_steps"], row.tag["global_steps"]) == (7, 7, 5)
    assert (row.fields["uid"], row.fields["extra_info"], row.fields["session_id"]) == ("u-1", {"a": 1}, 0)
    assert not {"validate", "agent_name", "__rollout_n__"} & row.fields.keys()


def test_a_member_that_failed_or_has_no_reward_has_no_rows(make_trajectory: Make) -> None:
    assert session_rows(make_trajectory(0, 0, is_failed=True), prompt_of()) == []
    assert session_rows(make_trajectory(0, 0, reward=None), prompt_of()) == []
    assert session_rows(make_trajectory(0, 0, is_trainable=False), prompt_of()) == []


def pending(members: int = 2) -> PendingGroups:
    groups = PendingGroups("run")
    groups.add(0, prompt_of(members), deadline_s=10)
    return groups


def settled(group: SettledGroup | None) -> SettledGroup:
    assert group is not None
    return group


def test_a_group_is_finished_once_when_all_members_are_there_whatever_comes_twice(make_trajectory: Make) -> None:
    groups = pending()
    first, second = make_trajectory(0, 0, reward=1.0), make_trajectory(0, 1)
    assert groups.take(first) is None
    assert groups.take(msgspec.structs.replace(first, reward=9.0)) is None
    done = settled(groups.take(second))
    assert (done.status, [row.key for row in done.rows]) == ("finished", ["u-1_0_0", "u-1_1_0"])
    assert done.rows[0].fields["rm_scores"][-1] == 1.0
    assert groups.take(second) is None


def test_a_group_with_a_failed_member_is_a_failure_that_keeps_what_is_good(make_trajectory: Make) -> None:
    groups = pending()
    groups.take(make_trajectory(0, 0))
    done = settled(groups.take(make_trajectory(0, 1, is_failed=True)))
    assert (done.status, len(done.rows)) == ("failure", 1)
    assert "member 1: EngineError" in done.reason


def test_trajectories_of_other_runs_and_of_groups_nobody_waits_for_are_left_alone(make_trajectory: Make) -> None:
    groups = pending(members=1)
    assert groups.take(make_trajectory(0, 0, run_id="before the restart")) is None
    assert groups.take(make_trajectory(1, 0)) is None
    assert settled(groups.take(make_trajectory(0, 0))).status == "finished"


def test_a_group_past_its_deadline_is_a_failure_and_says_who_is_missing(make_trajectory: Make) -> None:
    groups = pending()
    groups.take(make_trajectory(0, 1))
    assert groups.expire(9.9) == []
    [late] = groups.expire(10.0)
    assert (late.status, late.reason) == ("failure", "member 0 has not arrived")
    assert len(groups) == 0


def test_a_prompt_becomes_one_task_per_member_with_verls_own_sampling() -> None:
    options = read_options(CONFIG)
    prompt = read_prompt(ROW, rollout_config())
    tasks = prompt_tasks(prompt, options, rollout_config(), run_id="run", group_index=7, now_s=100.0)
    assert [(task.member_index, task.group_size, task.group_index) for task in tasks] == [(i, 4, 7) for i in range(4)]
    first = tasks[0]
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.max_tokens) == (0.7, 0.9, 32)
    assert (first.limits.max_turns, first.limits.max_response_tokens) == (3, 32)
    assert first.reward is not None
    assert (first.reward.name, first.reward.answer, first.deadline) == ("numeric", "2", 1900.0)
    assert first.messages[0].content == "1 + 1?"
    assert first.is_train


def test_prompts_of_a_validation_are_evaluations_sampled_as_verl_says() -> None:
    prompt = read_prompt({**ROW, "validate": True}, rollout_config())
    [task] = prompt_tasks(prompt, read_options(CONFIG), rollout_config(), run_id="run", group_index=0, now_s=0.0)
    assert (task.is_train, task.sampling.temperature, prompt.partition_id) == (False, 0.0, "val")


def test_a_baseline_prompt_is_sampled_greedily() -> None:
    prompt = prompt_of(1, __do_sample__=False)
    [task] = prompt_tasks(prompt, read_options(CONFIG), rollout_config(), run_id="run", group_index=0, now_s=0.0)
    assert (task.sampling.temperature, task.sampling.top_p) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"uid": "a_b"}, "a uid must have none"),
        ({"raw_prompt": None}, "return_raw_chat"),
        ({"raw_prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "text only"),
    ],
)
def test_prompts_that_cannot_be_tasks_say_why(row: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        prompt_tasks(
            read_prompt({**ROW, **row}, rollout_config()),
            read_options(CONFIG),
            rollout_config(),
            run_id="run",
            group_index=0,
            now_s=0.0,
        )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "has no section 'rollstream'"),
        (with_section(rewards="numeric"), "rewards"),
        (with_section(limits={"turns": 3}), "unknown fields"),
        (with_section(tools=[{"name": 1}]), "tools of verl"),
    ],
)
def test_a_wrong_section_is_refused_before_anything_starts(config: Mapping[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_options(config)


def test_a_configuration_of_another_verl_names_the_missing_key() -> None:
    with pytest.raises(SettingsError, match="val_kwargs"):
        read_rollout_config({"actor_rollout_ref": {"rollout": {"n": 1}}})


def test_weights_are_those_of_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert newest_weights(tmp_path) is None
    directory = tmp_path / "global_step_20" / "actor" / "huggingface"
    directory.mkdir(parents=True)
    latest = tmp_path / "latest_checkpointed_iteration.txt"
    latest.write_text("20")
    assert newest_weights(tmp_path) is None, "configuration and tokenizer only"
    (directory / "model.safetensors").write_bytes(b"w")
    found = newest_weights(tmp_path)
    assert found is not None
    assert (found.step, found.directory) == (20, directory)
    latest.write_text("torn")
    assert newest_weights(tmp_path) is None
