"""slime on the trajectory stream: a rollout function, a data source and a hook for rewards, all named by path.

Duty: one batch of the stream is one rollout of slime; slime's saved weights become policies.

Invariants: the stream lives in slime's data source, so slime's own checkpoints save and load its state: beside the
model of rollout R lies the state after the batch of R, also if slime has asked for R + 1 already.

Crash: slime goes on from its checkpoint, the stream with it. Tested against slime at commit 624b824.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.handed_out import NEWEST_FIELDS
from rollstream.trainers.adapters.progress_file import ProgressFile
from rollstream.trainers.adapters.slime_samples import (
    RewardedSample,
    SampleDict,
    evaluation_dicts,
    sample_dicts,
    trained_rewards,
)
from rollstream.trainers.advantages import find_estimator
from rollstream.trainers.batches import TrainingBatch, TrajectoryGroup
from rollstream.trainers.settings import StreamOptions
from rollstream.trainers.sync_stream import TrajectoryStream
from rollstream.transport.policy_files import local_path
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

WITH_STD = ("grpo", "gspo", "cispo")
GROUP_RELATIVE = (*WITH_STD, "reinforce_plus_plus_baseline")


class SlimeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mapping ``rollstream`` in slime's ``--custom-config-path``.

    Attributes:
        bootstrap: ``host:port`` of Kafka.
        prefix: of all topics.
        estimator: of what slime calls normalised rewards; None: what slime's own options ask for.
        stream: fields of ``TrainerSettings``; ``groups_per_batch`` is slime's ``rollout_batch_size``, and
            members need a reward.
    """

    bootstrap: str
    prefix: str = "rollstream."
    estimator: str | None = None
    stream: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])


class StreamDataSource:
    """For ``--data-source-path``: holds the stream, and saves it with slime's checkpoints.

    Policy version R + 1 are the weights after rollout R. They are published where slime saves them, ``--save-hf``, each
    time that it saves.
    """

    def __init__(self, args: Any) -> None:
        """Connects.

        Raises:
            SettingsError: the mapping ``rollstream`` is missing or wrong.
            TransientError: the broker does not answer.
        """
        self._args = args
        settings = slime_settings(args)
        options = {**settings.stream, "groups_per_batch": args.rollout_batch_size, "needs_reward": True}
        kafka = KafkaSettings(bootstrap=settings.bootstrap, prefix=settings.prefix)
        self._evaluations: list[TrajectoryGroup] = []
        self._stream = TrajectoryStream(kafka, on_evaluation=self._evaluations.append, **cast("StreamOptions", options))
        self._states_before: dict[int, dict[str, Any]] = {}
        self._stream.__enter__()

    def next_batch(self, rollout_id: int) -> TrainingBatch:
        """The batch of a rollout.

        Raises:
            SettingsError: the stream has ended.
            TimeoutError, DataLossError, TransientError: as the stream raises them.
        """
        self._states_before = {rollout_id: self._stream.state_dict()}
        batch = next(self._stream, None)
        if batch is None:
            raise SettingsError(
                f"the trajectory stream has ended before rollout {rollout_id}: set --num-rollout to {rollout_id}, or "
                "let the producer go on"
            )
        return batch

    def take_evaluations(self) -> list[TrajectoryGroup]:
        """Evaluation groups that came since the last call."""
        taken, self._evaluations[:] = list(self._evaluations), []
        return taken

    def save(self, rollout_id: int) -> None:
        """Called by slime after it has saved the model of this rollout."""
        if self._args.save_hf is not None:
            self._stream.publish_policy(rollout_id + 1, Path(self._args.save_hf.format(rollout_id=rollout_id)))
        now = self._stream.state_dict()
        before_next = self._states_before.get(rollout_id + 1, now)
        state = {**before_next, **{name: now[name] for name in NEWEST_FIELDS}}
        ProgressFile(_state_file(self._args.save, rollout_id)).save(state)

    def load(self, rollout_id: int | None = None) -> None:
        """Called by slime before its first rollout, with the one that its checkpoint finished; -1 or None: none.

        Raises:
            SettingsError: the checkpoint has no state of the stream.
        """
        if self._args.load is None or rollout_id is None or rollout_id < 0:
            return
        file = _state_file(self._args.load, rollout_id)
        state = ProgressFile(file).load()
        if state is None:
            raise SettingsError(
                f"{str(file)!r} does not exist: slime died while it saved rollout {rollout_id}, or saved it without "
                "this data source; load the checkpoint before it"
            )
        self._stream.load_state_dict(state)
        policy = state["policy"]
        directory = None if policy is None else local_path(policy["uri"])
        if directory is not None and not directory.is_dir():
            logger.warning("%s is gone: rollout workers keep the policy they have until slime saves again", directory)

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        """Prompts are the producer's.

        Raises:
            SettingsError: always.
        """
        raise SettingsError(
            "this data source has no prompts: pass --rollout-function-path "
            "rollstream.trainers.adapters.slime.generate_rollout too"
        )

    def add_samples(self, samples: list[list[Any]]) -> None:
        """Nothing comes back to a stream.

        Raises:
            SettingsError: always.
        """
        raise SettingsError("samples cannot be put back: a group is delivered once")

    def close(self) -> None:
        """Disconnect; slime never asks for it, its process just ends."""
        self._stream.__exit__(None, None, None)

    def __len__(self) -> int:
        """Unknown: the producer decides. slime needs ``--num-rollout`` then."""
        return 0


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
    """For ``--rollout-function-path``: slime's output of one rollout, or of an evaluation.

    An evaluation is what workers have finished of evaluation tasks since the last one; it does not wait.

    Raises:
        SettingsError: the data source is another one, or the stream has ended.
        TimeoutError, DataLossError, TransientError: as the stream raises them.
    """
    if not isinstance(data_source, StreamDataSource):
        raise SettingsError("pass --data-source-path rollstream.trainers.adapters.slime.StreamDataSource too")
    types, outputs = importlib.import_module("slime.utils.types"), importlib.import_module("slime.rollout.base_types")
    if evaluation:
        found = evaluation_dicts(data_source.take_evaluations())
        return outputs.RolloutFnEvalOutput(
            data={source: _evaluation(types.Sample, dicts) for source, dicts in found.items()}
        )
    batch = data_source.next_batch(rollout_id)
    dicts = sample_dicts(batch, groups=args.rollout_batch_size, members=args.n_samples_per_prompt)
    samples = [[[types.Sample.from_dict(sample) for sample in rollout] for rollout in group] for group in dicts]
    staleness = [group.staleness for group in batch.groups if group.staleness is not None]
    metrics = {"rollstream/groups": len(batch.groups), "rollstream/max_staleness": max(staleness, default=0)}
    return outputs.RolloutFnTrainOutput(samples=samples, metrics=metrics)


def post_process_rewards(args: Any, samples: Sequence[RewardedSample]) -> tuple[list[float], list[float]]:
    """For ``--custom-reward-post-process-path``: (raw, normalised), one for each sample.

    slime's own normalisation takes the whole batch for one group as soon as a trajectory has two samples.
    """
    return trained_rewards(samples, _estimator(args))


def slime_settings(args: Any) -> SlimeSettings:
    """The mapping ``rollstream`` of slime's arguments.

    Raises:
        SettingsError: it is missing or wrong.
    """
    given = getattr(args, "rollstream", None)
    if given is None:
        raise SettingsError(
            "slime's arguments have no mapping 'rollstream': name a YAML file with it by --custom-config-path, at "
            "least rollstream: {bootstrap: 'host:port'}"
        )
    try:
        settings = msgspec.convert(given, SlimeSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"the mapping 'rollstream' in slime's --custom-config-path: {error}") from error
    if settings.estimator is not None:
        find_estimator(settings.estimator)
    return settings


def _estimator(args: Any) -> str | None:
    chosen = slime_settings(args).estimator
    if chosen is not None:
        return chosen
    if args.advantage_estimator not in GROUP_RELATIVE or not args.rewards_normalization:
        return None
    return "grpo" if args.advantage_estimator in WITH_STD and args.grpo_std_normalization else "dr_grpo"


def _evaluation(sample_type: Any, dicts: list[SampleDict]) -> dict[str, Any]:
    return {
        "rewards": [sample["reward"] for sample in dicts],
        "truncated": [sample["status"] == "truncated" for sample in dicts],
        "samples": [sample_type.from_dict(sample) for sample in dicts],
    }


def _state_file(folder: str, rollout_id: int) -> Path:
    return Path(folder) / "rollout" / f"rollstream_{rollout_id}.json"
