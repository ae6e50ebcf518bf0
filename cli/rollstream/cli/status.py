"""``rollstream status``: what the pipeline is doing now."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from rollstream.cli.settings import load_settings
from rollstream.cli.status_report import GroupLag, StatusReport, build_report, report_table
from rollstream.schemas.control import Pause, PolicyVersion, ProducerProgress, TrainerProgress, WorkerStatus
from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.control import ControlFollower
from rollstream.transport.dead_letter_box.log import read_box
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import consumer_lag

COUNT_S = 3.0
"""Counting dead letters means reading them."""


def status_command(
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show lag, running episodes, workers, policy versions, trainer, producers and open dead letters."""
    settings = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}})
    report = asyncio.run(_now(settings.kafka))
    if as_json:
        typer.echo(msgspec.json.encode(report).decode())
    else:
        Console().print(report_table(report))
        if report.dead_letters_open is None:
            typer.echo(f"dead letters could not be counted within {COUNT_S:g} s", err=True)


async def _now(kafka: KafkaSettings) -> StatusReport:
    async with ControlFollower(kafka) as control:
        report = await gather_report(kafka, control)
    return replace(report, dead_letters_open=await open_dead_letters(kafka))


async def open_dead_letters(kafka: KafkaSettings) -> int | None:
    """How many letters nothing was done with; None: there are too many to count them here, or it cannot be done now."""
    try:
        async with asyncio.timeout(COUNT_S):
            counts = (await read_box(kafka)).counts()
    except (TimeoutError, SettingsError, TransientError):
        return None
    return counts["open"] + counts["replaying"]


async def gather_report(kafka: KafkaSettings, control: ControlFollower) -> StatusReport:
    """Put the newest facts of ``control`` and the lag of workers and trainer together. Reads only.

    Raises:
        TransientError: the broker does not answer.
    """
    policy, trainer, pause = control.latest(PolicyVersion), control.latest(TrainerProgress), control.latest(Pause)
    groups = worker_groups(kafka)
    if trainer is not None:
        groups.append(kafka.group(f"trainer.{trainer[0].trainer_id}"))
    lags = [lag for group in groups for lag in await _group_lags(kafka, group)]
    return build_report(
        bootstrap=kafka.bootstrap,
        prefix=kafka.prefix,
        at=time.time(),
        lags=lags,
        workers=control.all(WorkerStatus).values(),
        policy=policy[0] if policy else None,
        trainer=trainer[0] if trainer else None,
        producers=control.all(ProducerProgress).values(),
        pause=pause[0] if pause else None,
    )


def worker_groups(kafka: KafkaSettings) -> list[str]:
    """Full names of the consumer groups of all workers."""
    tool_workers = [kafka.group(f"tool-workers.{toolset}") for toolset in kafka.toolsets]
    return [kafka.group("rollout-workers"), *tool_workers, kafka.group("scorers")]


async def _group_lags(kafka: KafkaSettings, group: str) -> list[GroupLag]:
    by_topic: dict[str, int] = {}
    for partition in await consumer_lag(kafka, group):
        by_topic[partition.topic] = by_topic.get(partition.topic, 0) + partition.lag
    return [GroupLag(group, topic, lag) for topic, lag in sorted(by_topic.items())]
