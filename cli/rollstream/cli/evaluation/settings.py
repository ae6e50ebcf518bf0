"""What one evaluation is: data, samples, policy, and what counts as solved."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation.estimators import default_ks
from rollstream.trainers.evaluation.summaries import BOOTSTRAP_DRAWS, CONFIDENCE
from rollstream.trainers.settings import TrainedTopic

OWN_KEYS = ("source", "run_id", "group_size", "epochs", "is_train", "is_paced", "policy")
"""Settings of a producer that an evaluation decides itself."""
NAME = re.compile(r"[\w.-]{1,60}")


class EvaluationSettings(BaseModel):
    """One evaluation. Its run, and so the ids of its tasks, is a function of these and of the policy."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = ""
    """Of the evaluation, in reports: letters, digits, dots, dashes."""
    data: str = ""
    """A JSONL, Parquet or CSV file, a folder saved by `datasets`, or the name of a Hugging Face dataset."""
    policy: str = "latest"
    """latest, base (the model as the workers were started with it), LINEAGE:VERSION, or the URI of a sealed one."""
    samples: int = Field(default=8, ge=1, le=4096)
    """Episodes per prompt."""
    ks: tuple[int, ...] = ()
    """The k of pass@k; default: powers of two up to `samples`, and `samples`."""
    has_pass_hat: bool = False
    """Whether pass^k (all of k) is reported too."""
    pass_threshold: float = 1.0
    """Rewards from here on count as solved."""
    score: str | None = None
    """module:function that gets each trajectory and returns its reward, or metrics by name."""
    evaluator: str | None = None
    """module:function that gets an `EvaluationContext` and returns metrics; it emits what it wants."""
    topic: TrainedTopic = "trajectories"
    """Where episodes are taken from: `scored-trajectories` waits for scorers (with their `score_evaluations`)."""
    timeout_s: float = Field(default=3600.0, gt=0)
    """Then what is missing is counted, and the evaluation ends."""
    repeat: int = Field(default=0, ge=0)
    """Another number: fresh episodes instead of going on with those that are there."""
    confidence: float = Field(default=CONFIDENCE, gt=0, lt=1)
    """Of the intervals."""
    bootstrap_draws: int = Field(default=BOOTSTRAP_DRAWS, ge=100)
    """For the intervals."""
    bootstrap_seed: int = 0
    """Of those draws."""
    toolset: str = "default"
    """Whose workers run the tools."""
    tasks: dict[str, Any] = Field(default_factory=dict)
    """How a row becomes a task: the keys of `[producer]`."""

    @field_validator("ks")
    @classmethod
    def _check_ks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 1 for k in ks):
            raise ValueError("every k of pass@k must be at least 1")
        return tuple(sorted(set(ks)))

    @model_validator(mode="after")
    def _check(self) -> EvaluationSettings:
        if self.name and not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} must be 1 to 60 letters, digits, dots or dashes")
        if self.ks and self.ks[-1] > self.samples:
            raise ValueError(f"pass@{self.ks[-1]} needs at least as many samples, there are {self.samples}")
        taken = sorted(self.tasks.keys() & set(OWN_KEYS))
        if taken:
            raise ValueError(f"tasks.{taken[0]} is decided by the evaluation: leave it out")
        if self.data:
            self.producer(self.data, run_id="checked")
        return self

    @property
    def pass_ks(self) -> tuple[int, ...]:
        """The k of pass@k."""
        return self.ks or default_ks(self.samples)

    def producer(self, source: str, *, run_id: str, samples: int | None = None, **changes: Any) -> ProducerSettings:
        """The settings of a producer of this evaluation's tasks. ``changes`` go before ``tasks``."""
        values = {
            "source": source,
            "run_id": run_id,
            "group_size": samples or self.samples,
            "is_train": False,
            **self.tasks,
            **changes,
        }
        return ProducerSettings.model_validate(values)

    def checked(self) -> EvaluationSettings:
        """The same, if it can be run.

        Raises:
            SettingsError: there is no name, nothing to run, or nothing that would score it.
        """
        if not self.name:
            raise SettingsError("an evaluation needs a name: --name gsm8k")
        if self.evaluator is not None:
            return self
        if not self.data:
            raise SettingsError(f"evaluation {self.name!r} has no data: --data FILE, or --evaluator module:function")
        tasks = self.producer(self.data, run_id="checked")
        is_scored = self.score is not None or self.topic == "scored-trajectories"
        if tasks.reward is None and not is_scored and tasks.agent == "react":
            raise SettingsError(
                f"nothing would score the episodes of evaluation {self.name!r}: name a --reward and the column with "
                "its answers, or an own --score module:function, or --topic scored-trajectories"
            )
        return self
