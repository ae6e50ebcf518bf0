"""Which processes ``up`` and ``demo`` run, and how they are called. Pure."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rollstream.cli.command_line import CommandLine
from rollstream.cli.restart_policy import RestartPolicy
from rollstream.cli.settings import RollstreamSettings, UpSettings
from rollstream.cli.supervisor import ProcessSpec
from rollstream.transport.settings import KafkaSettings


def role_processes(
    settings: RollstreamSettings, kafka: KafkaSettings, command_line: CommandLine, *, host: str | None = None
) -> list[ProcessSpec]:
    """Processes of ``up``: tool workers first, then rollout workers, scorers, archiver, trainer and producer.

    Workers have names that stay the same over restarts, so that a restart within the session time-out moves no
    partitions. Every child resolves the same settings as its parent, with the address of the broker pinned.
    """
    host = host or socket.gethostname()
    up = settings.up
    pinned = _Pinned(up, kafka, command_line)
    tool, rollout, scorer = settings.tool_worker, settings.rollout_worker, settings.scorer
    specs = [
        pinned.worker("tool-worker", index, tool.instance_id or host, tool.metrics_port)
        for index in range(up.tool_workers)
    ]
    specs += [
        pinned.worker("rollout-worker", index, rollout.instance_id or host, rollout.metrics_port)
        for index in range(up.rollout_workers)
    ]
    specs += [
        pinned.worker("scorer", index, scorer.instance_id or host, scorer.metrics_port) for index in range(up.scorers)
    ]
    if settings.archive is not None:
        worker_id = f'archive.worker_id="{host}-archiver"'
        specs.append(pinned.process("archiver", "archive", "run", assignments=(worker_id,)))
    if up.trainer_command:
        specs.append(
            ProcessSpec(
                name="trainer",
                command=up.trainer_command,
                log_path=up.log_dir / "trainer.log",
                environment=kafka_environment(kafka),
                may_finish=True,
                restarts=restart_policy(up),
            )
        )
    if settings.producer is not None:
        specs.append(pinned.process("produce", "produce", may_finish=True))
    return specs


@dataclass(frozen=True)
class _Pinned:
    """Calls the ``rollstream`` of this environment with this process's settings, this broker, and a little more."""

    up: UpSettings
    kafka: KafkaSettings
    command_line: CommandLine

    def worker(self, role: str, index: int, owner: str, metrics_port: int | None) -> ProcessSpec:
        section, name = role.replace("-", "_"), f"{role}-{index}"
        assignments = [f'{section}.{key}="{owner}-{name}"' for key in ("instance_id", "worker_id")]
        if metrics_port is not None:
            assignments.append(f"{section}.metrics_port={metrics_port + index}")
        return self.process(name, role, assignments=assignments)

    def process(
        self, name: str, *command: str, assignments: Sequence[str] = (), may_finish: bool = False
    ) -> ProcessSpec:
        line = CommandLine(self.command_line.config, (*self.command_line.assignments, *assignments))
        return ProcessSpec(
            name=name,
            command=rollstream_command(line, self.kafka, *command),
            log_path=self.up.log_dir / f"{name}.log",
            may_finish=may_finish,
            restarts=restart_policy(self.up),
        )


def restart_policy(up: UpSettings) -> RestartPolicy:
    """The policy of the section [up]."""
    return RestartPolicy(up.restarts, up.first_restart_delay_s, up.max_restart_delay_s, up.healthy_after_s)


def rollstream_command(command_line: CommandLine, kafka: KafkaSettings, *arguments: str) -> tuple[str, ...]:
    """The ``rollstream`` of this environment with the settings of this process and the given broker."""
    pinned = CommandLine(
        command_line.config,
        (
            *command_line.assignments,
            f'kafka.bootstrap="{kafka.bootstrap}"',
            f'kafka.prefix="{kafka.prefix}"',
        ),
    )
    return (sys.executable, "-m", "rollstream.cli.main", *pinned.arguments(), *arguments)


def kafka_environment(kafka: KafkaSettings) -> dict[str, str]:
    """Where the broker is, for processes that are no ``rollstream`` command."""
    return {"ROLLSTREAM_KAFKA__BOOTSTRAP": kafka.bootstrap, "ROLLSTREAM_KAFKA__PREFIX": kafka.prefix}
