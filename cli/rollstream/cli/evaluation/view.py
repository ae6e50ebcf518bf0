"""Reports as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from rollstream.trainers.evaluation import (
    Difference,
    Evaluation,
    EvaluationReport,
    MetricSummary,
    against,
)

DETAILS = "metrics."
"""What trajectories say of themselves; the reports have it, tables only on demand."""


def report_tables(report: EvaluationReport, *, has_details: bool = False) -> Iterator[RenderableType]:
    """A table per environment of each evaluation, what is missing below it, and one over all of them.

    ``has_details``: with the trajectories' own metrics, too.
    """
    for evaluation in report.evaluations:
        for environment, all_metrics in evaluation.environments.items():
            metrics = _shown(all_metrics, has_details)
            title = f"{evaluation.name} · {environment} · policy {evaluation.policy.label}"
            differences = evaluation.baseline.differences.get(environment) if evaluation.baseline else None
            baseline = evaluation.baseline.policy if evaluation.baseline else ""
            yield _metrics_table(title, metrics, differences, baseline)
        if evaluation.metrics:
            yield _metrics_table(f"{evaluation.name} · own metrics", evaluation.metrics, None, "")
        yield from warnings(evaluation)
    if report.overall:
        yield _metrics_table("overall, environments of equal weight", _shown(report.overall, has_details), None, "")


def comparison_tables(
    reports: Sequence[tuple[str, EvaluationReport]], *, has_details: bool = False
) -> Iterator[RenderableType]:
    """Per evaluation and environment that the first report has: a column for each report, differences to the first."""
    (first_name, first), *others = reports
    for evaluation in first.evaluations:
        beside = [
            (name, against(found, first, name=first_name))
            for name, report in others
            for found in report.evaluations
            if found.name == evaluation.name
        ]
        for environment, metrics in evaluation.environments.items():
            table = Table(
                "metric", f"{first_name}\n{evaluation.policy.label}", title=f"{evaluation.name} · {environment}"
            )
            for name, found in beside:
                table.add_column(f"{name}\n{found.policy.label}")
            for metric, summary in _shown(metrics, has_details).items():
                cells = [metric, _mean(summary)]
                for _, found in beside:
                    theirs = found.environments.get(environment, {}).get(metric)
                    changed = found.baseline.differences.get(environment, {}) if found.baseline else {}
                    cells.append(
                        f"{_mean(theirs)}  {_difference(changed.get(metric)).plain}" if theirs is not None else "-"
                    )
                table.add_row(*cells)
            table.caption = "* the interval of the difference does not hold 0; ~ prompts could not be paired"
            yield table
    for name, report in reports:
        for evaluation in report.evaluations:
            for line in warnings(evaluation):
                yield Text(f"{name}: ").append_text(line)


def warnings(evaluation: Evaluation) -> Iterator[Text]:
    """What a reader of the figures has to know first."""
    counts = evaluation.episodes
    if counts.missing:
        places = ", ".join(evaluation.missing_places[:5])
        yield Text(
            f"{evaluation.name}: {counts.missing} of {counts.wanted} episodes are missing (group/member {places}"
            f"{', …' if counts.missing > 5 else ''}) and in no metric; run the same command to wait for them",
            style="bold red",
        )
    if counts.mixed:
        yield Text(
            f"{evaluation.name}: {counts.mixed} episodes have tokens of another policy than "
            f"{evaluation.policy.label} and are in no metric",
            style="bold red",
        )
    if counts.failed + counts.aborted:
        why = ", ".join(f"{error} (x{count})" for error, count in sorted(evaluation.errors.items())[:3])
        yield Text(
            f"{evaluation.name}: {counts.failed + counts.aborted} episodes failed and have no reward: {why}", "yellow"
        )
    if counts.unscored:
        yield Text(f"{evaluation.name}: {counts.unscored} episodes ended without a reward", "yellow")
    if len(evaluation.models) > 1 or len(evaluation.tokenizers) > 1:
        yield Text(f"{evaluation.name}: workers had different models: {evaluation.models}", "bold red")


def _metrics_table(
    title: str, metrics: dict[str, MetricSummary], differences: dict[str, Difference] | None, baseline: str
) -> Table:
    table = Table("metric", "mean", "± error", "interval", "std", "prompts", title=title)
    if differences is not None:
        table.add_column(f"minus {baseline}")
        table.caption = "* the interval of the difference does not hold 0; ~ prompts could not be paired"
    for name, summary in metrics.items():
        cells: list[str | Text] = [
            name,
            _number(summary.mean),
            _number(summary.std_error),
            f"{_number(summary.ci_low)} … {_number(summary.ci_high)}",
            _number(summary.std if summary.samples_std is None else summary.samples_std),
            str(summary.prompts),
        ]
        if differences is not None:
            cells.append(_difference(differences.get(name)))
        table.add_row(*cells)
    return table


def _shown(metrics: dict[str, MetricSummary], has_details: bool) -> dict[str, MetricSummary]:
    return {name: summary for name, summary in metrics.items() if has_details or not name.startswith(DETAILS)}


def _difference(difference: Difference | None) -> Text:
    if difference is None:
        return Text("-")
    mark = f"{' *' if difference.is_clear else ''}{'' if difference.is_paired else ' ~'}"
    text = f"{difference.difference:+.4g} ({difference.ci_low:+.4g} … {difference.ci_high:+.4g}){mark}"
    return Text(text, style="bold" if difference.is_clear else "")


def _mean(summary: MetricSummary) -> str:
    return f"{_number(summary.mean)} ± {_number(summary.std_error)}"


def _number(value: float) -> str:
    return f"{value:.4g}"
