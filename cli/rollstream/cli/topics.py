"""``rollstream topics apply | check | list | grant | grants | revoke``: the declared topics and what the broker has."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from rollstream.cli.topic_options import AsJson, Bootstrap, Prefix, kafka_settings
from rollstream.cli.topic_rights import grant, grants, revoke
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import (
    apply_topics,
    check_topics,
    list_topics,
)
from rollstream.transport.topic_differences import TopicDifference, TopicState

DIFFERENT = 1
"""Exit code when the broker is not as declared."""

topics_app = typer.Typer(no_args_is_help=True)


@topics_app.command()
def apply(
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    grow: Annotated[bool, typer.Option("--grow", help="Add missing partitions to existing topics too.")] = False,
) -> None:
    """Create missing topics and set their configs; exit code 1 if differences remain. Safe to repeat."""
    kafka = kafka_settings(bootstrap, prefix)
    changes = asyncio.run(apply_topics(kafka, grow=grow))
    for change in changes:
        typer.echo(f"{change.topic}: {change.change}")
    if not changes:
        typer.echo(f"nothing to change: {len(kafka.topics)} topics under {kafka.prefix!r}")
    remaining = asyncio.run(check_topics(kafka))
    if remaining:
        Console().print(difference_table(remaining))
        raise typer.Exit(DIFFERENT)


@topics_app.command()
def check(bootstrap: Bootstrap = None, prefix: Prefix = None, as_json: AsJson = False) -> None:
    """Explain each difference between the broker and the declared topics; exit code 1 if there is one."""
    kafka = kafka_settings(bootstrap, prefix)
    differences = asyncio.run(check_topics(kafka))
    if as_json:
        typer.echo(json.dumps([asdict(difference) for difference in differences]))
    elif differences:
        Console().print(difference_table(differences))
    else:
        typer.echo(f"all {len(kafka.topics)} topics under {kafka.prefix!r} are as declared")
    if differences:
        raise typer.Exit(DIFFERENT)


@topics_app.command("list")
def list_(bootstrap: Bootstrap = None, prefix: Prefix = None, as_json: AsJson = False) -> None:
    """Show the topics under the prefix."""
    kafka = kafka_settings(bootstrap, prefix)
    topics = asyncio.run(list_topics(kafka))
    if as_json:
        typer.echo(json.dumps([_as_data(topic) for topic in topics]))
    elif topics:
        Console().print(topic_list(topics, kafka))
    else:
        typer.echo(f"no topics under {kafka.prefix!r}; `rollstream topics apply` creates them")


for command in (grant, grants, revoke):
    topics_app.command()(command)


def difference_table(differences: Sequence[TopicDifference]) -> Table:
    """One row per difference, with what to do about it."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("topic", no_wrap=True)
    table.add_column("difference", ratio=2)
    table.add_column("to mend", ratio=1)
    for difference in differences:
        table.add_row(difference.topic, difference.explanation, difference.repair or "by hand")
    return table


def topic_list(topics: Sequence[TopicState], kafka: KafkaSettings) -> Table:
    """One row per topic; those that are not declared are marked."""
    declared = {topic.name for topic in kafka.topics.values()}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("topic", no_wrap=True)
    for column in ("partitions", "copies", "kept", "largest", "declared"):
        table.add_column(column)
    for topic in topics:
        table.add_row(
            topic.name,
            str(topic.partitions),
            str(topic.replication_factor),
            retention(topic.config),
            size(int(topic.config["max.message.bytes"])),
            "yes" if topic.name in declared else "no",
        )
    return table


def retention(config: Mapping[str, str]) -> str:
    """How long records stay, in words."""
    if config["cleanup.policy"] == "compact":
        return "newest per key"
    time_ms, size_bytes = int(config["retention.ms"]), int(config["retention.bytes"])
    bounds = [_duration(time_ms)] if time_ms >= 0 else []
    if size_bytes >= 0:
        bounds.append(f"{size(size_bytes)} per partition")
    return ", ".join(bounds) or "for ever"


def size(size_bytes: int) -> str:
    """Bytes in the greatest unit that is not below 1."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.4g} {unit}"
    return f"{size_bytes} B"


def _duration(time_ms: int) -> str:
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if time_ms >= factor:
            return f"{time_ms / factor:.4g} {unit}"
    return f"{time_ms / 1000:.4g} s"


def _as_data(topic: TopicState) -> dict[str, object]:
    return {
        "name": topic.name,
        "partitions": topic.partitions,
        "replication_factor": topic.replication_factor,
        "config": {name: topic.config.get(name) for name in sorted(topic.overrides)},
    }
