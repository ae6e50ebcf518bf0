"""Settings of a producer: what is read, how a row becomes a task, how fast tasks go out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from rollstream.producers.pacing import Pacing
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.rules import check_limits, check_sampling
from rollstream.schemas.tasks import EpisodeLimits, PolicyPin, SamplingParams, ToolSpec

S = TypeVar("S", bound=msgspec.Struct)


def _convert(value: object, struct_type: type[S]) -> S:
    """A mapping (from TOML, the environment or the command line) as a message part; unknown keys fail."""
    if isinstance(value, struct_type):
        return value
    if isinstance(value, dict):
        unknown = sorted(str(key) for key in value if key not in struct_type.__struct_fields__)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]  -- keys of an untyped mapping
        if unknown:
            raise ValueError(f"unknown keys {unknown}, expected some of {list(struct_type.__struct_fields__)}")
    try:
        return msgspec.convert(value, struct_type, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def _sampling(value: object) -> SamplingParams:
    sampling = _convert(value, SamplingParams)
    check_sampling(sampling)
    return sampling


def _limits(value: object) -> EpisodeLimits:
    limits = _convert(value, EpisodeLimits)
    check_limits(limits)
    return limits


def _policy(value: object) -> PolicyPin | None:
    return None if value is None else _convert(value, PolicyPin)


def _tools(value: Any) -> tuple[ToolSpec | str, ...]:
    if isinstance(value, str):
        value = value.split(",")
    return tuple(tool.strip() if isinstance(tool, str) else _convert(tool, ToolSpec) for tool in value)


class ProducerSettings(BaseModel):
    """One run of prompts: rows of a file or a dataset, each as a group of ``group_size`` tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)

    source: str
    """A JSONL, Parquet or CSV file, a folder saved by `datasets`, or the name of a Hugging Face dataset."""
    run_id: str = Field(min_length=1, max_length=200)
    """Name of the run: ids of tasks are a pure function of it, so the same run is never emitted twice."""
    dataset_config: str | None = None
    """Configuration of a Hugging Face dataset."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    data_source: str | None = None
    """Name of the data in every trajectory; by default the name of the file or dataset."""

    prompt_column: str | None = None
    """Column with the prompt: text, or a list of {role, content}; by default the first usual name that is there."""
    answer_column: str | None = None
    """Column with the reference answer; dots go into nested columns: reward_model.ground_truth."""
    answer_after: str | None = None
    """The answer is what follows the last occurrence of this text."""
    answer_regex: str | None = None
    """The answer is the first group (or all) of the last match of this pattern."""
    reward_arguments_column: str | None = None
    """Column with further arguments of the reward, an object or its JSON: tests or cases of that row."""
    workspace_column: str | None = None
    """Column with what the tool session starts with: an object {uri, sha256, kind}, or the text uri#sha256."""
    prompt_template: str | None = None
    """User message with columns in braces: "Solve: {question}"; {{ and }} stand for braces."""
    system_prompt: str | None = None
    """System message; replaces that of the row."""

    tools: Annotated[tuple[ToolSpec | str, ...], BeforeValidator(_tools)] = ()
    """Tools the model may call: names of built-in ones, module:function, or whole specifications."""
    agent: str = "react"
    """A registered agent or module:function."""
    sampling: Annotated[SamplingParams, BeforeValidator(_sampling)] = SamplingParams()
    """The distribution tokens are drawn from."""
    limits: Annotated[EpisodeLimits, BeforeValidator(_limits)] = EpisodeLimits()
    """Where an episode is cut."""
    reward: str | None = None
    """exact, numeric, regex or module:function; a grader of tool workers (unit_tests, call_cases, program_cases,
    command_tests, grader:name); None: trajectories are not scored."""
    reward_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the reward function."""

    group_size: int = Field(default=8, ge=1, le=4096)
    """Tasks per prompt."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data; may be raised later to continue a finished run."""
    is_shuffled: bool = False
    """Whether each epoch has an order of its own."""
    seed: int = 0
    """Seed of the order."""
    skip: int = Field(default=0, ge=0)
    """Rows left out at the beginning of the source (before shuffling)."""
    limit: int | None = Field(default=None, ge=1)
    """Rows taken after those skipped; None: all."""
    is_train: bool = True
    """False: evaluation; such trajectories reach no optimizer step."""
    policy: Annotated[PolicyPin | None, BeforeValidator(_policy)] = None
    """The only weights that may draw tokens (evaluation only); None: the newest of each moment."""

    on_bad_row: Literal["skip", "stop"] = "stop"
    """stop: every row is checked before the first task goes out; skip: bad rows are counted and left out."""
    rejects_path: Path | None = None
    """JSONL file that gets place, column and rule of every bad row."""
    is_paced: bool | None = None
    """true: wait for a trainer and keep to its limit; false: never. By default a training run keeps to the limit once
    there is a trainer, and evaluation never does."""
    max_groups_in_flight: int = Field(default=64, ge=1, le=4096)
    """Groups sent and not yet acknowledged."""
    backfill_linger_s: float | None = Field(default=None, ge=0)
    """How long a run that is all sent stays to send replacements, since the trainer last said something. By default
    300 s if a trainer has said that it asks for replacements in this run, else not at all."""
    topic_check_s: float = Field(default=10.0, gt=0)
    """Time between two looks whether the topic still is the one that the tasks were sent to."""

    @property
    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """The tools as specifications.

        Raises:
            SettingsError: one is a name; whoever knows the tools (the command line does) has to look it up first.
        """
        specs = tuple(tool for tool in self.tools if isinstance(tool, ToolSpec))
        if len(specs) != len(self.tools):
            names = [tool for tool in self.tools if isinstance(tool, str)]
            raise SettingsError(f"tools {names} are names, expected their specifications")
        return specs

    @property
    def pacing(self) -> Pacing:
        """How the trainer's ``emit_limit`` holds for this run."""
        if self.is_paced is None:
            return "follow" if self.is_train else "free"
        return "wait" if self.is_paced else "free"
