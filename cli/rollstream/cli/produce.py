"""`rollstream produce`: a dataset into tasks, with a progress bar and a dry run."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rollstream.cli.settings import describe, load_settings
from rollstream.cli.stop_signals import stop_on_signals
from rollstream.schemas.errors import SettingsError

if TYPE_CHECKING:
    from rollstream.producers.run_plan import RunPlan
    from rollstream.producers.service import RunProgress
    from rollstream.producers.settings import ProducerSettings
    from rollstream.schemas.tasks import ToolSpec

_STATES = {
    "reading": "reading what is there",
    "emitting": "sending",
    "waiting_for_trainer": "waiting for the trainer",
    "paused": "paused",
    "serving_backfill": "all sent, replacements may be wanted",
    "finished": "finished",
    "stopped": "stopped",
}
_PLAIN_STEP = 0.1
"""Without a terminal: a line at every change of state and every tenth of the run."""
NO_BROKER = "localhost:9"
"""A dry run talks to nobody, so it needs no address."""


def produce_command(
    source: Annotated[
        str | None, typer.Argument(metavar="FILE|DATASET", help="JSONL, Parquet or CSV file, dataset folder or name.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Name of the run; the same run is never emitted twice.")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of a Hugging Face dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a Hugging Face dataset.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Text or chat messages; default: a usual name.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Reference answer; dots go into nested columns.")] = None,
    answer_after: Annotated[str | None, typer.Option(help='The answer follows the last of these: "####".')] = None,
    answer_regex: Annotated[str | None, typer.Option(help="The answer is the last match (its first group).")] = None,
    reward_arguments_column: Annotated[str | None, typer.Option(help="Further arguments of the reward.")] = None,
    workspace_column: Annotated[str | None, typer.Option(help="What the tool session starts with.")] = None,
    prompt_template: Annotated[str | None, typer.Option(help='User message: "Solve: {question}".')] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System message; replaces that of a row.")] = None,
    tools: Annotated[str | None, typer.Option(help="Built-in names, modules, file.py or exported .json.")] = None,
    toolset: Annotated[str, typer.Option(help="Whose workers run the tools.")] = "default",
    agent: Annotated[str | None, typer.Option(help="A registered agent or module:function.")] = None,
    reward: Annotated[str | None, typer.Option(help="exact, numeric, regex, module:function, or a grader.")] = None,
    reward_arg: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of the reward.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Tasks per prompt.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; may be raised later.")] = None,
    shuffle: Annotated[bool | None, typer.Option("--shuffle/--no-shuffle", help="Another order every epoch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order.")] = None,
    skip: Annotated[int | None, typer.Option(help="Rows left out at the beginning.")] = None,
    limit: Annotated[int | None, typer.Option(help="Rows taken after those.")] = None,
    eval_: Annotated[bool | None, typer.Option("--eval/--train", help="Evaluation: reaches no optimizer step.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sampling nucleus.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Sampled tokens per turn.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="Generations per episode.")] = None,
    max_response_tokens: Annotated[int | None, typer.Option(help="Tokens after the prompt.")] = None,
    wall_clock: Annotated[float | None, typer.Option(metavar="SECONDS", help="Time an episode may take.")] = None,
    on_bad_row: Annotated[str | None, typer.Option(metavar="skip|stop", help="What a bad row does.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="JSONL file that gets the bad rows' places.")] = None,
    pace: Annotated[bool | None, typer.Option("--pace/--no-pace", help="Wait for a trainer, or ignore it.")] = None,
    dry_run: Annotated[int | None, typer.Option(metavar="N", help="Show the first N prompts, send nothing.")] = None,
) -> None:
    """Turn a dataset into tasks. Running it again or after a crash goes on where it stopped and repeats nothing."""
    options: dict[str, Any] = {
        "source": source,
        "run_id": run,
        "dataset_config": dataset_config,
        "split": split,
        "prompt_column": prompt_column,
        "answer_column": answer_column,
        "answer_after": answer_after,
        "answer_regex": answer_regex,
        "reward_arguments_column": reward_arguments_column,
        "workspace_column": workspace_column,
        "prompt_template": prompt_template,
        "system_prompt": system_prompt,
        "tools": tools.split(",") if tools is not None else None,
        "agent": agent,
        "reward": reward,
        "reward_arguments": dict(map(key_and_value, reward_arg)) if reward_arg else None,
        "group_size": group_size,
        "epochs": epochs,
        "is_shuffled": shuffle,
        "seed": seed,
        "skip": skip,
        "limit": limit,
        "is_train": None if eval_ is None else not eval_,
        "sampling": _given(temperature=temperature, top_p=top_p, max_tokens=max_tokens),
        "limits": _given(max_turns=max_turns, max_response_tokens=max_response_tokens, wall_clock_s=wall_clock),
        "on_bad_row": on_bad_row,
        "rejects_path": rejects,
        "is_paced": pace,
    }
    if dry_run is not None and bootstrap is None:
        bootstrap = NO_BROKER
    settings = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}, "producer": options})
    if settings.producer is None:
        raise SettingsError("nothing to produce: rollstream produce FILE|DATASET --run NAME")
    producer = with_tool_specs(settings.producer, toolset=toolset)
    if dry_run is not None:
        _show_prompts(producer, dry_run)
        return
    from rollstream.transport.telemetry import set_up_logging

    set_up_logging()
    typer.echo(describe(producer), err=True)

    async def emit() -> RunProgress:
        from rollstream.producers.service import produce

        with stop_on_signals() as stop, _progress_shown() as show:
            return await produce(producer, settings.kafka, stop, show)

    done = asyncio.run(emit())
    print(summary(done, producer.run_id))


def with_tool_specs(settings: ProducerSettings, *, toolset: str = "default") -> ProducerSettings:
    """The same settings with every tool that is a name looked up among the tool workers' tools, or in its file.

    Raises:
        SettingsError: there is no such tool.
    """
    from rollstream.cli.tools import read_specs
    from rollstream.tool_workers.registry import load_tools

    def specs_of(tool: str) -> list[ToolSpec]:
        return read_specs(Path(tool)) if tool.endswith(".json") else load_tools([tool]).specs(toolset=toolset)

    specs = [spec for tool in settings.tools for spec in (specs_of(tool) if isinstance(tool, str) else [tool])]
    return settings.model_copy(update={"tools": tuple(specs)})


def summary(done: RunProgress, run_id: str) -> str:
    """One sentence on what a producer did."""
    parts = [f"run {run_id!r} {_STATES[done.state]}: {done.groups_done} of {done.groups_total} groups are in the topic"]
    parts.append(f"{done.tasks_sent} tasks sent now")
    if done.tasks_found:
        parts.append(f"{done.tasks_found} were there before")
    if done.replacements_sent:
        parts.append(f"{done.replacements_sent} replacements sent")
    if done.rows_rejected:
        parts.append(f"{done.rows_rejected} bad rows left out")
    return ", ".join(parts)


def _show_prompts(settings: ProducerSettings, count: int) -> None:
    from rollstream.producers.run_plan import open_plan
    from rollstream.producers.task_building import Rejection

    plan = open_plan(settings)
    try:
        print(
            f"{plan.prompts_total} prompts x {settings.group_size} tasks from {plan.source.name}, {_columns_of(plan)}"
        )
        if settings.tool_specs:
            print(f"tools: {', '.join(tool.name for tool in settings.tool_specs)}")
        for _, built in zip(range(count), plan.prompts(), strict=False):
            if isinstance(built, Rejection):
                print(f"\n--- bad row: {built}")
                continue
            print(f"\n--- {built.place}" + (f", answer {built.answer!r}" if built.answer is not None else ""))
            for message in built.messages:
                print(f"[{message.role}] {message.content}")
    finally:
        plan.source.close()


def _columns_of(plan: RunPlan) -> str:
    columns = plan.columns
    prompt = f"prompt from {columns.prompt!r}" if columns.prompt else f"template over {list(columns.template)}"
    return f"{prompt}, answer from {columns.answer!r}" if columns.answer else prompt


@contextmanager
def _progress_shown() -> Generator[Callable[[RunProgress], None]]:
    """A bar with groups per second on a terminal, now and then a line elsewhere."""
    if not sys.stderr.isatty():
        yield _line_printer()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("groups, {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, rate="")

        def show(progress: RunProgress) -> None:
            speed = bar.tasks[task].speed
            rate = f"{speed:.0f}/s" if speed else ""
            if progress.rows_rejected:
                rate += f", {progress.rows_rejected} bad rows"
            bar.update(
                task,
                description=_described(progress),
                total=progress.groups_total,
                completed=progress.groups_done,
                rate=rate,
            )

        yield show


def _line_printer() -> Callable[[RunProgress], None]:
    shown: tuple[str, int] | None = None

    def show(progress: RunProgress) -> None:
        nonlocal shown
        step = int(progress.groups_done / max(1, progress.groups_total) / _PLAIN_STEP)
        if (progress.state, step) != shown:
            shown = (progress.state, step)
            print(f"{_described(progress)}: {progress.groups_done}/{progress.groups_total} groups", file=sys.stderr)

    return show


def _described(progress: RunProgress) -> str:
    if progress.state == "waiting_for_trainer":
        limit = "no trainer yet" if progress.groups_allowed == 0 else progress.groups_allowed
        return f"{_STATES[progress.state]} (limit: {limit})"
    return _STATES[progress.state]


def _given(**values: Any) -> dict[str, Any] | None:
    return {key: value for key, value in values.items() if value is not None} or None


def key_and_value(text: str) -> tuple[str, Any]:
    """``k=v``; v is JSON where it reads as such, else text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingsError(f"--reward-arg {text!r}: expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
