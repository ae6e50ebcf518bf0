"""TRL's ``AsyncGRPOTrainer`` on the trajectory stream: its rollout worker, its weight transfer, its checkpoints.

Duty: hand TRL one sample after another, publish its weights after each sync, and keep the stream's state beside each of
its checkpoints. Tested with TRL 1.16.

Invariants: the stream is used by TRL's thread alone, and asked for a batch only when TRL asks for a sample that is not
there, so nothing is read ahead but what TRL reads ahead; a checkpoint counts as trained exactly what the optimizer has
stepped on. Ranks other than the main one never open the stream.

Crash: go on from the newest checkpoint that ``last_checkpoint`` names. What was prefetched and not trained on comes
again, what was trained on does not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Unpack

import msgspec

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.handed_out import HandedOut, HandedOutState
from rollstream.trainers.adapters.progress_file import ProgressFile
from rollstream.trainers.adapters.trl_policies import TrlPolicies
from rollstream.trainers.adapters.trl_rollouts import TrlConnection, TrlRolloutWorker
from rollstream.trainers.advantages import find_estimator
from rollstream.trainers.settings import StreamOptions
from rollstream.trainers.stream import OnEvaluation
from rollstream.trainers.sync_stream import TrajectoryStream
from rollstream.transport.settings import KafkaSettings

STATE_FILE = "rollstream.json"
"""In each of TRL's checkpoint directories, written last: with it the checkpoint is whole."""
DEFAULT_ESTIMATOR = "grpo_trl_async"


class TrlStream:
    """What connects an ``AsyncGRPOTrainer`` to the stream: pass its three parts to the trainer's constructor.

    Attributes:
        stream: opened by the trainer when training begins and closed when it ends, on its main process only.
        rollout_worker: for ``rollout_worker=``.
        weight_transfer: for ``weight_transfer=``.
        callback: for ``callbacks=[…]``; without it training does not start.
    """

    def __init__(
        self,
        kafka: str | KafkaSettings,
        *,
        policies: str | Path,
        estimator: str = DEFAULT_ESTIMATOR,
        prefix: str | None = None,
        on_evaluation: OnEvaluation | None = None,
        **options: Unpack[StreamOptions],
    ) -> None:
        """Connects to nothing yet.

        Args:
            kafka: ``host:port``, or complete settings.
            policies: directory in which each published version gets a directory; workers must be able to read it. With
                the option ``policy_store`` it holds only what is about to be copied there.
            estimator: of advantages, one of ``rollstream.trainers.advantages.ADVANTAGES``; the default is TRL's own.
            prefix: of all topics.
            on_evaluation: gets every complete group of evaluation tasks once.
            options: the fields of ``TrainerSettings``.

        Raises:
            SettingsError: an argument is wrong.
        """
        find_estimator(estimator)
        self.stream = TrajectoryStream(kafka, prefix=prefix, on_evaluation=on_evaluation, **options)
        self._connection = TrlConnection(self.stream, options.get("policy_store"))
        self.rollout_worker = TrlRolloutWorker(self._connection, estimator)
        self.weight_transfer = TrlPolicies(self._connection, Path(policies))
        self.callback: Any = TrlCallback(self._connection, self.rollout_worker, self.weight_transfer)

    def resume_from(self, checkpoint: str | Path) -> None:
        """Go on with the stream where this checkpoint left it; before ``trainer.train(resume_from_checkpoint=…)``.

        Raises:
            SettingsError: the directory is no whole checkpoint, or of another topic or run.
        """
        file = Path(checkpoint) / STATE_FILE
        saved = ProgressFile(file).load()
        if saved is None:
            raise SettingsError(
                f"{str(file)!r} does not exist: the trainer died while it wrote this checkpoint, or the callback was "
                "not passed to it; go on from the one that last_checkpoint() names"
            )
        try:
            step = msgspec.convert(saved["step"], int)
            state = msgspec.convert(saved, HandedOutState)
        except (KeyError, msgspec.ValidationError) as error:
            raise SettingsError(f"{str(file)!r} is no state of this adapter: {error!r}") from error
        self.stream.load_state_dict(state.stream)
        self._connection.handed_out = HandedOut(state.finished)
        self._connection.restored, self._connection.restored_step = state.stream, step


class TrlCallback:
    """Learns from TRL's loop what is trained on, and saves the stream's state with each checkpoint.

    A ``transformers.TrainerCallback`` by shape: events that it has no method for do nothing.
    """

    def __init__(self, connection: TrlConnection, worker: TrlRolloutWorker, policies: TrlPolicies) -> None:
        self._connection = connection
        self._worker = worker
        self._policies = policies

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return _ignore
        raise AttributeError(name)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Comes before TRL's own set-up, which publishes the first policy and starts the worker."""
        restored_step = self._connection.restored_step
        if state.global_step != restored_step:
            raise SettingsError(
                f"TRL begins at step {state.global_step}, the stream at {restored_step}: call "
                "resume_from() with the checkpoint that train(resume_from_checkpoint=…) gets, and only with that"
            )
        worker, policies = self._worker, self._policies
        worker.steps_per_sync, worker.temperature = args.weight_sync_steps, args.temperature
        worker.fill_length = max(2, args.token_budget or 0)
        policies.model, policies.processing_class = kwargs["model"], kwargs.get("processing_class")
        policies.step = state.global_step
        if state.is_world_process_zero:
            loader = getattr(kwargs["train_dataloader"], "base_dataloader", kwargs["train_dataloader"])
            loader.collate_fn = _NotedCollation(loader.collate_fn, self._connection.handed_out)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One micro-batch of several in a step is done."""
        if state.is_world_process_zero:
            self._connection.handed_out.trained()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last micro-batch of a step is done. Comes before TRL's sync of this step."""
        self._policies.step = state.global_step
        if not state.is_world_process_zero:
            return
        self._connection.handed_out.trained()
        if self._worker.has_ended and self._connection.handed_out.is_empty:
            control.should_training_stop = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """TRL's files are there; ours makes the checkpoint whole."""
        if state.is_world_process_zero:
            checkpoint = self._connection.handed_out.state(self._connection.stream.state_dict())
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE
            ProgressFile(file).save({"step": state.global_step, **msgspec.to_builtins(checkpoint)})


class _NotedCollation:
    """TRL's collator, and a note of which samples it packs into each micro-batch."""

    def __init__(self, collate: Any, handed_out: HandedOut) -> None:
        self._collate = collate
        self._handed_out = handed_out

    def __call__(self, examples: list[Any]) -> Any:
        samples = [sample for rows in examples for row in rows for sample in row.samples]
        self._handed_out.packed([sample["metrics"].key for sample in samples])
        return self._collate(examples)


def _ignore(*args: Any, **kwargs: Any) -> None:
    """An event that does not concern this callback."""


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint of a trainer that is whole: TRL's files and the stream's state. None: there is none."""
    found = [
        (int(match[1]), path)
        for path in Path(output_dir).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / STATE_FILE).is_file()
    ]
    return max(found)[1] if found else None
