"""What the manager takes from verl's configuration, and its own section of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tasks import EpisodeLimits, SamplingParams, ToolSpec
from rollstream.transport.settings import KafkaSettings

SECTION = "rollstream"
ENABLE = "`+rollstream.kafka.bootstrap=host:9092 +rollstream.reward=numeric`"


class VerlOptions(BaseModel):
    """The section ``rollstream`` of verl's configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kafka: KafkaSettings
    """Cluster and topics."""
    reward: str
    """Name of the reward of every task; the answer is the row's ``reward_model.ground_truth``."""
    reward_arguments: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further arguments of the reward."""
    agent: str = "react"
    """Agent that runs the episodes."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tools of every task: the fields of ``ToolSpec``, as `rollstream tools export` writes them."""
    limits: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Fields of ``EpisodeLimits``; ``max_response_tokens`` is verl's ``response_length``."""
    run_id: str = "verl"
    """Beginning of the run's name; each start of the trainer is a run of its own."""
    group_deadline_s: float = Field(default=1800.0, gt=0)
    """A group that is not complete this long after its dispatch is a failure, and its tasks are not begun any more."""
    publishes_checkpoints: bool = True
    """Whether Hugging Face weights that verl saves become policies."""

    def tool_specs(self) -> list[ToolSpec]:
        """The tools, checked.

        Raises:
            SettingsError: one is none.
        """
        return _converted(list(self.tools), list[ToolSpec], "tools")

    def episode_limits(self, response_length: int) -> EpisodeLimits:
        """The limits, checked.

        Raises:
            SettingsError: a field is unknown or of another type.
        """
        unknown = sorted(self.limits.keys() - set(EpisodeLimits.__struct_fields__))
        if unknown:
            raise SettingsError(f"{SECTION}.limits: unknown fields {unknown}; known: {EpisodeLimits.__struct_fields__}")
        return _converted({"max_response_tokens": response_length, **self.limits}, EpisodeLimits, "limits")


class RolloutConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of verl's configuration that tasks depend on."""

    n: int
    """Members of a training group."""
    val_n: int
    temperature: float
    top_p: float
    top_k: int
    val_temperature: float
    val_top_p: float
    val_top_k: int
    response_length: int
    checkpoint_dir: str

    def members(self, *, is_validation: bool) -> int:
        """Rollouts of a prompt that says nothing itself."""
        return self.val_n if is_validation else self.n

    def sampling(self, *, is_validation: bool, is_greedy: bool = False) -> SamplingParams:
        """The distribution that verl would sample from; a turn may take all tokens of the response."""
        if is_greedy and not is_validation:
            return SamplingParams(temperature=0.0, max_tokens=self.response_length)
        if is_validation:
            return SamplingParams(
                temperature=self.val_temperature,
                top_p=self.val_top_p,
                top_k=self.val_top_k,
                max_tokens=self.response_length,
            )
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, max_tokens=self.response_length
        )

    def checkpoints(self) -> Path:
        """Where verl saves ``global_step_<n>``."""
        return Path(self.checkpoint_dir)


def read_options(config: Mapping[str, Any]) -> VerlOptions:
    """The section ``rollstream``.

    Raises:
        SettingsError: it is missing or wrong.
    """
    section = config.get(SECTION)
    if section is None:
        raise SettingsError(f"verl's configuration has no section {SECTION!r}: add {ENABLE}")
    try:
        options = VerlOptions.model_validate(section)
    except ValidationError as error:
        raise SettingsError(f"section {SECTION!r} of verl's configuration: {error}") from error
    options.tool_specs()
    options.episode_limits(1)
    return options


def read_rollout_config(config: Mapping[str, Any]) -> RolloutConfig:
    """What verl would sample with.

    Raises:
        SettingsError: a key that verl 0.9 has is not there.
    """
    try:
        rollout = config["actor_rollout_ref"]["rollout"]
        validation = rollout["val_kwargs"]
        plain = {
            "n": rollout["n"],
            "val_n": validation["n"],
            "temperature": rollout["temperature"],
            "top_p": rollout["top_p"],
            "top_k": rollout["top_k"],
            "val_temperature": validation["temperature"],
            "val_top_p": validation["top_p"],
            "val_top_k": validation["top_k"],
            "response_length": rollout["response_length"],
            "checkpoint_dir": config["trainer"]["default_local_dir"],
        }
    except KeyError as error:
        raise SettingsError(f"verl's configuration has no key {error}: RollStream knows verl 0.9") from error
    return _converted(plain, RolloutConfig, "actor_rollout_ref.rollout")


def plain_config(config: Any) -> dict[str, Any]:
    """An OmegaConf configuration, or a mapping, as plain data with everything resolved."""
    if isinstance(config, dict):
        return cast("dict[str, Any]", config)
    from omegaconf import OmegaConf

    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))


def _converted(value: Any, kind: Any, name: str) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name} of verl's configuration: {error}") from error
