"""Evaluations as a file: everything that is needed to repeat and to compare them. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation.comparison import Difference
from rollstream.trainers.evaluation.results import PromptResult
from rollstream.trainers.evaluation.summaries import MetricSummary, overall

FORMAT = "rollstream-evaluation"
SCHEMA_VERSION = 1


class PolicyFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens they are."""

    asked_for: str
    """As the user named it."""
    lineage: int
    version: int
    uri: str = ""
    """Empty: the model as the workers were started with it."""
    manifest_sha256: str = ""
    kind: Literal["full", "lora"] = "full"

    @property
    def label(self) -> str:
        """``base`` or ``lineage:version``."""
        return f"{self.lineage}:{self.version}" if self.uri else "base"


class EpisodeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How the episodes that were asked for ended."""

    wanted: int
    completed: int = 0
    truncated: int = 0
    aborted: int = 0
    failed: int = 0
    mixed: int = 0
    """With tokens of another policy than the pinned one: in no metric, and not among those above."""
    missing: int = 0
    """Not there at the end; in no metric."""
    unscored: int = 0
    """Completed or truncated, without a reward."""

    @property
    def is_whole(self) -> bool:
        """Every episode is there and of the pinned policy."""
        return not (self.missing or self.mixed)


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation was compared with."""

    report: str
    """Name of its file."""
    policy: str
    """``base`` or ``lineage:version``."""
    differences: dict[str, dict[str, Difference]]
    """New minus baseline, by environment and metric."""


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation of one policy."""

    name: str
    run_ids: list[str]
    policy: PolicyFacts
    episodes: EpisodeCounts
    environments: dict[str, dict[str, MetricSummary]]
    """Metrics by environment (data source)."""
    prompts: list[PromptResult]
    metrics: dict[str, MetricSummary] = msgspec.field(default_factory=dict[str, MetricSummary])
    """Of an own evaluation object."""
    missing_places: list[str] = msgspec.field(default_factory=list[str])
    """The first of the missing: ``group/member``."""
    errors: dict[str, int] = msgspec.field(default_factory=dict[str, int])
    """Why episodes failed, counted."""
    data_digests: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Per environment, of the whole data it was taken from."""
    settings: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    """All of the evaluation: data, sampling, limits, reward, samples, threshold, seeds."""
    models: list[str] = msgspec.field(default_factory=list[str])
    """What workers call their model; more than one means that workers differ."""
    tokenizers: list[str] = msgspec.field(default_factory=list[str])
    baseline: Baseline | None = None
    started_at: float = 0.0
    """Unix seconds."""
    finished_at: float = 0.0


class EvaluationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of a report file."""

    format: str = FORMAT
    schema_version: int = SCHEMA_VERSION
    evaluations: list[Evaluation]
    overall: dict[str, MetricSummary] = msgspec.field(default_factory=dict[str, MetricSummary])
    """Over environments, where there is more than one."""
    versions: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    """Of the programs involved."""

    @property
    def is_whole(self) -> bool:
        """Nothing is missing or mixed."""
        return all(evaluation.episodes.is_whole for evaluation in self.evaluations)


def make_report(evaluations: list[Evaluation], versions: dict[str, str]) -> EvaluationReport:
    """A report over evaluations, with the means over all their environments."""
    environments = {
        f"{evaluation.name}/{name}": metrics
        for evaluation in evaluations
        for name, metrics in evaluation.environments.items()
    }
    return EvaluationReport(
        evaluations=evaluations,
        overall=overall(environments) if len(environments) > 1 else {},
        versions=versions,
    )


def encode_report(report: EvaluationReport) -> bytes:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def encode_curve_point(report: EvaluationReport) -> bytes:
    """One line of JSON, without the results of single prompts: a point of a curve over many versions."""
    evaluations = [msgspec.structs.replace(evaluation, prompts=[]) for evaluation in report.evaluations]
    return msgspec.json.encode(msgspec.structs.replace(report, evaluations=evaluations)) + b"\n"


def decode_report(body: bytes, *, name: str) -> EvaluationReport:
    """The report in a file.

    Args:
        body: JSON.
        name: of the file, for the message.

    Raises:
        SettingsError: it is none, or of a newer version than this program knows.
    """
    try:
        head = msgspec.json.decode(body, type=_Head)
        if head.format != FORMAT:
            raise SettingsError(f"{name!r} is no report of `rollstream eval` (its format is {head.format!r})")
        if head.schema_version > SCHEMA_VERSION:
            raise SettingsError(
                f"{name!r} was written under schema version {head.schema_version}, this program knows "
                f"{SCHEMA_VERSION}: upgrade it"
            )
        return msgspec.json.decode(body, type=EvaluationReport)
    except msgspec.MsgspecError as error:
        raise SettingsError(f"{name!r} is no report of `rollstream eval`: {error}") from error


class _Head(msgspec.Struct):
    format: str = ""
    schema_version: int = 0
