"""`rollstream eval`: evaluate a policy; `rollstream eval show`: look at reports and compare them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.cli.produce import key_and_value
from rollstream.cli.settings import load_settings
from rollstream.cli.topic_options import Bootstrap, Prefix
from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation import EvaluationReport, decode_report, encode_report

eval_app = typer.Typer(invoke_without_command=True)

NOT_WHOLE = 3
"""Exit code of a report in which episodes are missing or have tokens of another policy."""
STOPPED = 130


@eval_app.callback()
def eval_command(
    context: typer.Context,
    data: Annotated[str | None, typer.Option(metavar="FILE|DATASET", help="Prompts and their answers.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the evaluation, in reports.")] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="POLICY", help="latest, base, LINEAGE:VERSION or the URI of a policy.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Episodes per prompt.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", help="k of pass@k; default: powers of two, and all.")] = None,
    pass_hat: Annotated[bool | None, typer.Option("--pass-hat/--no-pass-hat", help="Report pass^k too.")] = None,
    pass_threshold: Annotated[float | None, typer.Option(help="Rewards from here on count as solved.")] = None,
    score: Annotated[str | None, typer.Option(help="module:function that scores each trajectory.")] = None,
    evaluator: Annotated[str | None, typer.Option(help="module:function that runs an evaluation of its own.")] = None,
    suite: Annotated[str | None, typer.Option(help="Several evaluations: a TOML file, or module:list.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON report; with --follow the JSONL curve.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Earlier report to show differences to.")] = None,
    topic: Annotated[
        str | None, typer.Option(metavar="TOPIC", help="trajectories, or scored-trajectories to wait for scorers.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Then what is missing is counted.")] = None,
    repeat: Annotated[int | None, typer.Option(help="Another number: fresh episodes.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Evaluate versions as training announces them.")] = False,
    every: Annotated[int, typer.Option(min=1, help="With --follow: versions from one point to the next.")] = 1,
    points: Annotated[int | None, typer.Option(min=1, help="With --follow: end after so many points.")] = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of a Hugging Face dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hugging Face dataset.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Text or chat messages; default: a usual name.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Reference answer; dots go into nested columns.")] = None,
    answer_after: Annotated[str | None, typer.Option(help='The answer follows the last of these: "####".')] = None,
    answer_regex: Annotated[str | None, typer.Option(help="The answer is the last match (its first group).")] = None,
    prompt_template: Annotated[str | None, typer.Option(help='User message: "Solve: {question}".')] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System message; replaces that of a row.")] = None,
    tools: Annotated[str | None, typer.Option(help="Built-in names, modules, file.py or exported .json.")] = None,
    toolset: Annotated[str | None, typer.Option(help="Whose workers run the tools.")] = None,
    agent: Annotated[str | None, typer.Option(help="A registered agent or module:function.")] = None,
    reward: Annotated[str | None, typer.Option(help="exact, numeric, regex, module:function, or a grader.")] = None,
    reward_arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of the reward.")] = None,
    skip: Annotated[int | None, typer.Option(help="Rows left out at the beginning.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows taken after those.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(metavar="skip|stop", help="What a bad row does.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sampling nucleus.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Sampled tokens per turn.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="Generations per episode.")] = None,
    max_response_tokens: Annotated[int | None, typer.Option(help="Tokens after the prompt.")] = None,
    wall_clock: Annotated[float | None, typer.Option(metavar="SECONDS", help="Time an episode may take.")] = None,
) -> None:
    """Evaluate a policy on the rollout workers that are there. Running it again goes on where it stopped."""
    if context.invoked_subcommand is not None:
        return
    tasks = _given(
        dataset_config=dataset_config,
        split=split,
        prompt_column=prompt_column,
        answer_column=answer_column,
        answer_after=answer_after,
        answer_regex=answer_regex,
        prompt_template=prompt_template,
        system_prompt=system_prompt,
        tools=tools.split(",") if tools is not None else None,
        agent=agent,
        reward=reward,
        reward_arguments=dict(map(key_and_value, reward_arg)) if reward_arg else None,
        skip=skip,
        limit=limit,
        on_bad_row=on_bad_row,
        sampling=_given(temperature=temperature, top_p=top_p, max_tokens=max_tokens),
        limits=_given(max_turns=max_turns, max_response_tokens=max_response_tokens, wall_clock_s=wall_clock),
    )
    options: dict[str, Any] = {
        "name": name,
        "data": data,
        "policy": policy,
        "samples": samples,
        "ks": k or None,
        "has_pass_hat": pass_hat,
        "pass_threshold": pass_threshold,
        "score": score,
        "evaluator": evaluator,
        "topic": topic,
        "timeout_s": timeout,
        "repeat": repeat,
        "toolset": toolset,
        "tasks": tasks,
    }
    settings = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}, "evaluation": options})
    evaluations = _evaluations(suite, settings.evaluation, options)
    before = read_report(baseline) if baseline is not None else None
    if not follow and (points is not None or every != 1):
        raise SettingsError("--every and --points belong to --follow")
    if follow and (output is None or policy is not None):
        raise SettingsError(
            "--follow evaluates what training announces: give it an --output for the curve, no --policy"
        )

    if output is not None:
        check_output(output)

    from rollstream.cli.evaluation.evaluating import Evaluating
    from rollstream.transport.telemetry import set_up_logging

    set_up_logging()
    evaluating = Evaluating(evaluations, settings.kafka, baseline=before, baseline_name=str(baseline or ""))
    if follow:
        assert output is not None
        asyncio.run(evaluating.follow(output, every=every, points=points))
        return
    report = asyncio.run(evaluating.once())
    if report is None:
        typer.echo("stopped; run the same command to go on with what is there", err=True)
        raise typer.Exit(STOPPED)
    if output is not None:
        write_report(output, report)
    if not report.is_whole:
        raise typer.Exit(NOT_WHOLE)


@eval_app.command()
def show(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT…", help="Reports; the first is the baseline.")],
    details: Annotated[bool, typer.Option("--details", help="With the metrics of the trajectories, too.")] = False,
) -> None:
    """Show a report, or several side by side with differences to the first."""
    from rollstream.cli.evaluation.view import comparison_tables, report_tables

    found = [(str(path), read_report(path)) for path in reports]
    console = Console()
    alone = len(found) == 1
    tables = report_tables(found[0][1], has_details=details) if alone else comparison_tables(found, has_details=details)
    for shown in tables:
        console.print(shown)


def check_output(path: Path) -> None:
    """Make the folder of a report before hours are spent on it.

    Raises:
        SettingsError: the report could not be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"--output {str(path)!r} cannot be written: {error}; name another file") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise SettingsError(f"--output {str(path)!r} is a folder, or lies in one that cannot be written: name a file")


def write_report(path: Path, report: EvaluationReport) -> None:
    """Replace the file; a reader sees the report of before or the new one, never a part.

    Raises:
        SettingsError: it cannot be written; what was sampled is in the log.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(encode_report(report))
        part.replace(path)
    except OSError as error:
        raise SettingsError(
            f"--output {str(path)!r} cannot be written: {error}; name another file and run the same command again"
        ) from error


def read_report(path: Path) -> EvaluationReport:
    """A report file; of a curve its last point.

    Raises:
        SettingsError: it cannot be read, or is none.
    """
    try:
        body = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"report {str(path)!r} cannot be read: {error}") from error
    lines = body.strip().splitlines() if path.suffix == ".jsonl" else [body]
    return decode_report(lines[-1] if lines else b"", name=str(path))


def _evaluations(suite: str | None, settings: EvaluationSettings, given: dict[str, Any]) -> list[EvaluationSettings]:
    if suite is None:
        return [settings.checked()]
    if given["name"] is not None or given["data"] is not None:
        raise SettingsError("--name and --data are those of a single evaluation: leave them out beside --suite")
    from rollstream.cli.evaluation.suites import load_suite

    return load_suite(suite, settings, given)


def _given(**values: Any) -> dict[str, Any] | None:
    return {key: value for key, value in values.items() if value is not None} or None
