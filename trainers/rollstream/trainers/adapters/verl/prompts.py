"""One prompt of verl's data loader as the tasks of a group. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from rollstream.schemas import ids
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import ChatMessage, RewardSpec, RolloutTask
from rollstream.trainers.adapters.verl.options import RolloutConfig, VerlOptions

NOT_IN_ROWS = ("validate", "agent_name", "multi_modal_data", "__rollout_n__", "__do_sample__")
"""What verl tells its own agent loops and does not store with their output."""


@dataclass(frozen=True, slots=True)
class VerlPrompt:
    """One row of the batch that verl dispatches.

    Attributes:
        fields: everything that verl expects to find again in the rows of the TransferQueue, its ``uid`` included.
        global_steps: the trainer's step at dispatch.
    """

    uid: str
    fields: Mapping[str, Any]
    members: int
    global_steps: int
    is_validation: bool = False
    is_greedy: bool = False

    @property
    def partition_id(self) -> str:
        """The partition of the TransferQueue that holds it."""
        return "val" if self.is_validation else "train"


def read_prompt(row: Mapping[str, Any], config: RolloutConfig) -> VerlPrompt:
    """Check a row.

    Raises:
        SettingsError: its ``uid`` cannot be part of a key, or something that verl 0.9 sends is missing.
    """
    try:
        uid, global_steps = str(row["uid"]), int(row["global_steps"])
    except KeyError as error:
        raise SettingsError(f"a prompt of verl has no {error}: RollStream knows verl 0.9") from error
    if "_" in uid:
        raise SettingsError(f"prompt {uid!r}: verl splits keys of the TransferQueue at '_', a uid must have none")
    is_validation = bool(row.get("validate", False))
    return VerlPrompt(
        uid=uid,
        fields={key: value for key, value in row.items() if key not in NOT_IN_ROWS},
        members=int(row.get("__rollout_n__", config.members(is_validation=is_validation))),
        global_steps=global_steps,
        is_validation=is_validation,
        is_greedy=not bool(row.get("__do_sample__", True)),
    )


def prompt_tasks(
    prompt: VerlPrompt, options: VerlOptions, config: RolloutConfig, *, run_id: str, group_index: int, now_s: float
) -> list[RolloutTask]:
    """The tasks of its group; ``now_s`` in unix seconds.

    Raises:
        SettingsError: the prompt is not a list of messages of text.
    """
    messages = _messages(prompt)
    data_source = prompt.fields.get("data_source", "")
    return [
        RolloutTask(
            run_id=run_id,
            group_id=ids.group_id(run_id, group_index),
            group_index=group_index,
            group_size=prompt.members,
            member_index=member,
            trajectory_id=ids.trajectory_id(run_id, group_index, member),
            messages=messages,
            tools=options.tool_specs(),
            agent=options.agent,
            sampling=config.sampling(is_validation=prompt.is_validation, is_greedy=prompt.is_greedy),
            limits=options.episode_limits(config.response_length),
            reward=RewardSpec(
                name=options.reward, answer=_ground_truth(prompt), arguments=dict(options.reward_arguments)
            ),
            is_train=not prompt.is_validation,
            data_source=str(data_source),
            data_index=str(prompt.fields.get("index", "")),
            created_at=now_s,
            deadline=now_s + options.group_deadline_s,
            extra={"uid": prompt.uid},
        )
        for member in range(prompt.members)
    ]


def _messages(prompt: VerlPrompt) -> list[ChatMessage]:
    raw = prompt.fields.get("raw_prompt")
    if raw is None:
        raise SettingsError(f"prompt {prompt.uid!r} has no 'raw_prompt': set data.return_raw_chat=True")
    messages: list[ChatMessage] = []
    for message in cast("Iterable[Mapping[str, Any]]", raw):
        content = message["content"]
        if not isinstance(content, str):
            raise SettingsError(
                f"prompt {prompt.uid!r}: a message holds {type(content).__name__}, and agents take text only"
            )
        messages.append(ChatMessage(role=message["role"], content=content))
    return messages


def _ground_truth(prompt: VerlPrompt) -> str | None:
    reward_model = prompt.fields.get("reward_model")
    truth = cast("Mapping[str, Any]", reward_model).get("ground_truth") if isinstance(reward_model, Mapping) else None
    if truth is None or isinstance(truth, str):
        return truth
    return json.dumps(truth, default=str)
