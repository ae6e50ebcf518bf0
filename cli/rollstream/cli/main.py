"""The ``rollstream`` command. A command's module is imported only when the command is called, so help is instant."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from rollstream.cli.command_line import CommandLine, remember
from rollstream.schemas.errors import RollstreamError, single_errors
from rollstream.transport.telemetry import set_up_logging


@dataclass(frozen=True)
class LazyCommand:
    """Where a command lives: ``module:attribute`` is a function or, for a group of commands, a ``typer.Typer``."""

    name: str
    source: str
    help: str

    def load(self) -> Callable[..., object] | typer.Typer:
        """Import the module and return what it declares."""
        module, _, attribute = self.source.partition(":")
        return getattr(import_module(module), attribute)


COMMANDS = (
    LazyCommand("demo", "rollstream.cli.demo.command:demo_command", "From nothing to a reward curve that rises."),
    LazyCommand("up", "rollstream.cli.up:up_command", "Run all roles of rollstream.toml on this machine."),
    LazyCommand("status", "rollstream.cli.status:status_command", "Show lag, episodes, workers and policy versions."),
    LazyCommand("doctor", "rollstream.cli.doctor:doctor_command", "Check this machine and say what to do."),
    LazyCommand("broker", "rollstream.cli.broker:broker_app", "Start, stop and look at a local Kafka broker."),
    LazyCommand(
        "topics", "rollstream.cli.topics:topics_app", "Create, check and list the topics, and the rights to them."
    ),
    LazyCommand("produce", "rollstream.cli.produce:produce_command", "Turn a dataset into tasks."),
    LazyCommand(
        "rollout-worker",
        "rollstream.cli.rollout_worker:rollout_worker_command",
        "Run episodes: tasks in, trajectories out.",
    ),
    LazyCommand("tool-worker", "rollstream.cli.tool_worker:tool_worker_command", "Run tool calls in sandboxes."),
    LazyCommand(
        "scorer", "rollstream.cli.scorer:scorer_command", "Score trajectories after the fact: judges, reward models."
    ),
    LazyCommand("tools", "rollstream.cli.tools:tools_app", "List and export the tools of a tool worker."),
    LazyCommand("policies", "rollstream.cli.policies:policies_app", "List stored policies, and remove unneeded ones."),
    LazyCommand(
        "eval", "rollstream.cli.evaluation.command:eval_app", "Evaluate a policy beside training, compare reports."
    ),
    LazyCommand("trajectories", "rollstream.cli.trajectories:trajectories_app", "Follow and export trajectories."),
    LazyCommand(
        "agent-lightning",
        "rollstream.cli.agent_lightning:agent_lightning_app",
        "Feed trainers that read from an agent-lightning server.",
    ),
    LazyCommand("archive", "rollstream.cli.archive:archive_app", "Keep every trajectory in files, for ever."),
    LazyCommand("atropos", "rollstream.cli.atropos:atropos_app", "Feed trainers that speak Atropos' HTTP API."),
    LazyCommand(
        "dead-letters",
        "rollstream.cli.dead_letters:dead_letters_app",
        "List, show, replay and drop records that could not be processed.",
    ),
    LazyCommand("schemas", "rollstream.cli.schemas:schemas_app", "Write and check the JSON Schemas of all messages."),
    LazyCommand("version", "rollstream.cli.version:version_command", "Print versions of RollStream and its engine."),
)


GLOBAL_OPTIONS = ("--config", "--set")


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The command tree in which only the commands named in ``arguments`` are real; the others are their help line."""
    app = typer.Typer(
        name="rollstream",
        help="Kafka-native rollout pipeline for online reinforcement learning of LLM agents.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_remember_globals)
    called = next((a for a in arguments if any(a == command.name for command in COMMANDS)), None)
    for command in COMMANDS:
        loaded = command.load() if command.name == called else _unloaded
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=command.name, help=command.help)
        else:
            app.command(command.name, short_help=command.help)(loaded)
    return app


def main() -> NoReturn:
    """Entry point of the ``rollstream`` script; what is wrong on purpose ends in one message and exit code 1 or 2."""
    arguments = globals_first(sys.argv[1:])
    # Own agents, rewards and tools lie where the user calls us; last on the path, so that they shadow nothing.
    sys.path.append(str(Path.cwd()))
    set_up_logging(level=logging.WARNING, client_level=logging.CRITICAL)
    try:
        build_app(arguments)(arguments, prog_name="rollstream", standalone_mode=True)
    except RollstreamError as error:
        print(f"rollstream: {error}", file=sys.stderr)
        sys.exit(1)
    except BaseExceptionGroup as errors:
        expected, unexpected = errors.split(RollstreamError)
        if expected is None or unexpected is not None:
            raise
        for error in single_errors(expected):
            print(f"rollstream: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def globals_first(arguments: Sequence[str]) -> list[str]:
    """Move ``--config`` and ``--set`` before the command's name, so that they may stand anywhere before ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments[:end])
    for word in words:
        if word in GLOBAL_OPTIONS:
            first += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(tuple(f"{option}=" for option in GLOBAL_OPTIONS)):
            first.append(word)
        else:
            rest.append(word)
    return [*first, *rest, *arguments[end:]]


def _unloaded() -> None:
    raise AssertionError("a command that is called is always loaded")


def _remember_globals(
    config: Annotated[
        Path | None, typer.Option(help="Settings file; without it ./rollstream.toml is read if it exists.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting: kafka.bootstrap=host:9092.")
    ] = None,
) -> None:
    remember(CommandLine(config=config, assignments=tuple(set_ or ())))


if __name__ == "__main__":
    main()
