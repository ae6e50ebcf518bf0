"""All settings of all roles in one place: command line > environment > rollstream.toml > defaults.

Environment: ``ROLLSTREAM_<SECTION>__<KEY>``, nested further with ``__``. Unknown keys fail, wherever they come from.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from rollstream.cli.command_line import CommandLine, given
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.producers.settings import ProducerSettings
from rollstream.rollout_workers.settings import RolloutWorkerSettings
from rollstream.schemas.errors import SettingsError
from rollstream.scorers.settings import ScorerSettings
from rollstream.tool_workers.settings import ToolWorkerSettings
from rollstream.tool_workers.tool_secrets import VARIABLE_PREFIX
from rollstream.trainers.archive.settings import ArchiveSettings
from rollstream.trainers.settings import TrainerSettings
from rollstream.transport.local_broker import BrokerSettings, running_bootstrap
from rollstream.transport.settings import KafkaSettings

DEFAULT_FILE = Path("rollstream.toml")
ENVIRONMENT_PREFIX = "ROLLSTREAM_"
FOREIGN_VARIABLES = frozenset({"ROLLSTREAM_TEST_BOOTSTRAP"})
"""Variables with our prefix that are no settings."""
MASK = "**********"
SECRET_WORDS = ("password", "secret", "token", "api_key")
NOT_SECRET = frozenset({"tokenizer"})
"""Names of texts that contain such a word and hold no secret."""

NO_BROKER = "no-broker.invalid:1"
"""Stands for an address where none is known yet; `.invalid` never resolves."""

_toml_file: ContextVar[Path | None] = ContextVar("toml_file", default=None)


class UpSettings(BaseModel):
    """What `rollstream up` runs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rollout_workers: int = Field(default=1, ge=0)
    """Processes of `rollout-worker`."""
    tool_workers: int = Field(default=1, ge=0)
    """Processes of `tool-worker`."""
    scorers: int = Field(default=0, ge=0)
    """Processes of `scorer`."""
    trainer_command: tuple[str, ...] = ()
    """Program and arguments of the trainer; it gets address and prefix in the environment. Empty: none."""
    restarts: int = Field(default=5, ge=0)
    """Restarts in a row before a process is given up and everything is drained."""
    first_restart_delay_s: float = Field(default=1.0, gt=0)
    """Wait before the first restart; doubles with every further one in a row."""
    max_restart_delay_s: float = Field(default=30.0, gt=0)
    """Longest wait before a restart."""
    healthy_after_s: float = Field(default=60.0, gt=0)
    """A process that ran this long has its full budget again."""
    drain_s: float = Field(default=60.0, ge=0)
    """Time processes get between SIGTERM and SIGKILL; a second Ctrl-C cuts it short."""
    log_dir: Path = Path("logs")
    """One log file per process."""


class RollstreamSettings(BaseSettings):
    """Everything that can be set, by section."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    kafka: KafkaSettings
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    rollout_worker: RolloutWorkerSettings = Field(default_factory=RolloutWorkerSettings)
    tool_worker: ToolWorkerSettings = Field(default_factory=ToolWorkerSettings)
    scorer: ScorerSettings = Field(default_factory=ScorerSettings)
    producer: ProducerSettings | None = None
    trainer: TrainerSettings = Field(default_factory=TrainerSettings)
    archive: ArchiveSettings | None = None
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    up: UpSettings = Field(default_factory=UpSettings)

    @model_validator(mode="before")
    @classmethod
    def _find_broker(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Without an address of Kafka: that of ``[broker]``, else of the local broker that is running."""
        kafka, broker = _table(data.get("kafka", {})), _table(data.get("broker", {}))
        if kafka is None or broker is None or "bootstrap" in kafka:
            return data
        address = broker.get("bootstrap")
        if address is None:
            # A wrong section [broker] reports its own error.
            with suppress(ValidationError):
                address = running_bootstrap(BrokerSettings.model_validate(broker))
        return {**data, "kafka": {**kafka, "bootstrap": address or NO_BROKER}}

    @property
    def has_broker(self) -> bool:
        """Whether the address of a broker is known."""
        return self.kafka.bootstrap != NO_BROKER

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Earlier sources win, key by key."""
        file = _toml_file.get()
        toml = (TomlConfigSettingsSource(settings_cls, file),) if file else ()
        return (init_settings, env_settings, *toml)


def load_settings(
    options: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    command_line: CommandLine | None = None,
    needs_broker: bool = True,
) -> RollstreamSettings:
    """Resolve the settings of this process.

    Args:
        options: section -> key -> value of the command's own options; None values were not given. They win over
            ``--set``.
        command_line: what stood before the command's name; by default what this process was called with.
        needs_broker: whether it is an error that no address was given and no local broker runs.

    Raises:
        SettingsError: a key is unknown, a value is wrong, or the file cannot be read. Names all of them.
    """
    command_line = command_line or given()
    file = _settings_file(command_line)
    _check_environment(os.environ)
    values = _assigned(command_line.assignments)
    for section, keys in (options or {}).items():
        values.setdefault(section, {}).update({key: value for key, value in keys.items() if value is not None})
    reset = _toml_file.set(file)
    try:
        build = cast("Callable[..., RollstreamSettings]", RollstreamSettings)
        settings = build(**{section: keys for section, keys in values.items() if keys})
    except ValidationError as error:
        lines = "\n".join(f"  {_explained(detail)}" for detail in error.errors())
        where = f" (file {str(file)!r}, environment {ENVIRONMENT_PREFIX}…, command line)" if file else ""
        raise SettingsError(f"the settings are wrong{where}:\n{lines}") from error
    finally:
        _toml_file.reset(reset)
    if needs_broker and not settings.has_broker:
        raise SettingsError(
            "no broker is known: set kafka.bootstrap (or ROLLSTREAM_KAFKA__BOOTSTRAP), or run `rollstream broker start`"
        )
    return settings


def changed_kafka(kafka: KafkaSettings, **changes: object) -> KafkaSettings:
    """The same cluster with some settings changed, everything derived from them derived anew."""
    fields = {name: getattr(kafka, name) for name in KafkaSettings.model_fields}
    return KafkaSettings.model_validate({**fields, **changes})


def shown_settings(settings: BaseModel) -> dict[str, Any]:
    """The settings as plain data for people, secrets masked."""
    return _masked(settings.model_dump(mode="json", fallback=str))


def describe(settings: BaseModel) -> str:
    """One ``key = value`` line per setting, secrets masked: printed once at start."""
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in _flat(shown_settings(settings)))


def _table(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _settings_file(command_line: CommandLine) -> Path | None:
    file = command_line.config
    if file is None:
        return DEFAULT_FILE if DEFAULT_FILE.is_file() else None
    if not file.is_file():
        raise SettingsError(f"--config {str(file)!r}: there is no such file")
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{str(file)!r} is not valid TOML: {error}") from error
    return file


def _assigned(assignments: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise SettingsError(f"--set {assignment!r}: expected section.key=value")
        place: dict[str, Any] = values
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = _value(text, assignment)
    return values


def _value(text: str, assignment: str) -> Any:
    """Lists, tables, quoted text and null are JSON; everything else is text that the setting's type reads."""
    if not text.startswith(("[", "{", '"')) and text != "null":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise SettingsError(f"--set {assignment!r}: the value is not valid JSON: {error}") from error


def _check_environment(environment: Mapping[str, str]) -> None:
    sections = sorted(RollstreamSettings.model_fields)
    for variable in sorted(environment):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable.startswith(VARIABLE_PREFIX):
            continue
        if variable in FOREIGN_VARIABLES:
            continue
        section = variable.removeprefix(ENVIRONMENT_PREFIX).partition("__")[0].lower()
        if section not in sections:
            raise SettingsError(
                f"environment variable {variable!r} sets nothing: expected {ENVIRONMENT_PREFIX}<SECTION>__<KEY> "
                f"with one of the sections {sections}"
            )


def _explained(error: ErrorDetails) -> str:
    """What pydantic found, with the known keys where a key is unknown."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, key = (str(part) for part in error["loc"])
        return f"{path}: unknown key {key!r}; known here: {_known_keys(parents)}"
    if error["type"] == "missing":
        return f"{path}: missing"
    value = MASK if _is_secret(str(error["loc"][-1])) else repr(error["input"])
    return f"{path}: {error['msg']}, got {value}"


def _known_keys(parents: list[str]) -> list[str]:
    """Keys of the model that the path leads to; a part that is no key is the tag of a union and selects a member."""
    models: list[type[BaseModel]] = [RollstreamSettings]
    for part in parents:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [found for field in fields for found in _models_in(field.annotation)] or models
        else:
            models = [model for model in models if _has_tag(model, part)] or models
    return sorted({key for model in models for key in model.model_fields})


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return model.__name__ == tag or any(field.default == tag for field in model.model_fields.values())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(cast("type[object]", annotation), BaseModel):
        yield cast("type[BaseModel]", annotation)
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _is_secret(key: str) -> bool:
    return key not in NOT_SECRET and any(word in key.lower() for word in SECRET_WORDS)


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, dict):
        return {name: _masked(item, str(name)) for name, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_masked(item, key) for item in cast("list[Any]", value)]
    return MASK if isinstance(value, str) and value and _is_secret(key) else value


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(cast("dict[str, Any]", item), f"{path}{key}.")
        else:
            yield f"{path}{key}", item
