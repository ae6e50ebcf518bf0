"""``rollstream status``: what the pipeline is doing now."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from rollstream.cli.settings import load_settings
from rollstream.cli.status_report import GroupLag, StatusReport, build_report, report_table
from rollstream.schemas.control import Pause, PolicyVersion, ProducerProgress, TrainerProgress, WorkerStatus
from rollstream.transport.control import ControlFollower
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.topic_admin import consumer_lag


def status_command(
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Prefix of all topics.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show lag, running episodes, workers, policy versions, trainer and producers."""
    settings = load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}})
    report = asyncio.run(_now(settings.kafka))
    if as_json:
        typer.echo(msgspec.json.encode(report).decode())
    else:
        Console().print(report_table(report))


async def _now(kafka: KafkaSettings) -> StatusReport:
    async with ControlFollower(kafka) as control:
        return await gather_report(kafka, control)


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
    return [kafka.group("rollout-workers"), *(kafka.group(f"tool-workers.{toolset}") for toolset in kafka.toolsets)]


async def _group_lags(kafka: KafkaSettings, group: str) -> list[GroupLag]:
    by_topic: dict[str, int] = {}
    for partition in await consumer_lag(kafka, group):
        by_topic[partition.topic] = by_topic.get(partition.topic, 0) + partition.lag
    return [GroupLag(group, topic, lag) for topic, lag in sorted(by_topic.items())]
