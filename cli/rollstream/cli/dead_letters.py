"""``rollstream dead-letters list | show | replay | drop``: what could not be processed, and what to do with it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from rollstream.cli.dead_letter_view import (
    letter_data,
    letter_lines,
    letter_table,
    offer_lines,
    record_data,
    summary_line,
)
from rollstream.cli.points_in_time import point_in_time
from rollstream.cli.settings import load_settings
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError, SettingsError
from rollstream.transport.dead_letter_box.desk import DeadLetterDesk
from rollstream.transport.dead_letter_box.letters import (
    UNDECIDED,
    BuriedLetter,
    DeadLetterBox,
    LetterId,
    LetterState,
)
from rollstream.transport.dead_letter_box.log import read_box, read_letters
from rollstream.transport.dead_letter_box.selection import LetterFilter
from rollstream.transport.settings import KafkaSettings

dead_letters_app = typer.Typer(no_args_is_help=True)

REFUSED = 1
"""Exit code when some letters could not be replayed."""
TABLE_ROWS = 100
State = Literal["open", "replayed", "dropped", "all"]
STATES: dict[State, tuple[LetterState, ...]] = {
    "open": UNDECIDED,
    "replayed": ("replayed",),
    "dropped": ("dropped",),
    "all": (*UNDECIDED, "replayed", "dropped"),
}

Bootstrap = Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")]
Prefix = Annotated[str | None, typer.Option(help="Prefix of all topics.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[LETTER]...", help="Letters, as list shows them.")]
Topic = Annotated[str | None, typer.Option(help="Of the record: tasks, tool-calls (all toolsets), a full name.")]
Role = Annotated[str | None, typer.Option(help="Who buried it: rollout-worker, tool-worker, tool-client, trainer.")]
ErrorType = Annotated[str | None, typer.Option(help="Class of the cause: InvalidMessageError.")]
Worker = Annotated[str | None, typer.Option(help="Id of the worker that buried it.")]
Since = Annotated[str | None, typer.Option(help="Buried then or later: 90s, 15m, 2h, 1d ago, or an ISO time.")]
Until = Annotated[str | None, typer.Option(help="Buried before that.")]
Grep = Annotated[str | None, typer.Option(metavar="TEXT", help="Anywhere in cause, stack, key, headers or value.")]
All = Annotated[bool, typer.Option("--all", help="All open letters, where no letter and no filter is given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before more than one letter is touched.")]


@dead_letters_app.command("list")
def list_(
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    topic: Topic = None,
    role: Role = None,
    error_type: ErrorType = None,
    worker: Worker = None,
    since: Since = None,
    until: Until = None,
    grep: Grep = None,
    state: Annotated[State, typer.Option(help="Letters that nothing was done with yet, or others.")] = "open",
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="At most so many, newest first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per letter and line.")] = False,
) -> None:
    """Show letters, the one that failed last first; reads only."""
    kafka = _kafka(bootstrap, prefix)
    wanted = _filter(kafka, topic, role, error_type, worker, since, until, grep)
    dead_letters = asyncio.run(read_box(kafka, wanted.fits))
    letters = dead_letters.wanted(STATES[state])
    if as_json:
        for each in letters[:limit]:
            typer.echo(json.dumps(letter_data(each, dead_letters, kafka.prefix)))
        return
    shown = letters[: limit or TABLE_ROWS]
    if shown:
        Console().print(letter_table(shown, dead_letters, kafka.prefix))
    typer.echo(summary_line(letters, len(shown)))


@dead_letters_app.command()
def show(
    letter: Annotated[str, typer.Argument(help="The letter, as list shows it: tasks/3/1204.")],
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    raw: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the record's value there as it is.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; key, headers and value in base64.")] = False,
) -> None:
    """Show everything about one letter, its value decoded as far as possible."""
    kafka = _kafka(bootstrap, prefix)
    dead_letters = asyncio.run(read_box(kafka))
    buried = _named(dead_letters, [letter], kafka)[0]
    whole = asyncio.run(_whole(kafka, buried))
    if raw is not None:
        if whole.value is None:
            raise SettingsError(f"the record of letter {letter!r} is a tombstone: it has no value to write")
        try:
            raw.write_bytes(whole.value)
        except OSError as error:
            raise SettingsError(f"--raw {str(raw)!r}: {error}") from error
    if as_json:
        typer.echo(json.dumps(letter_data(buried, dead_letters, kafka.prefix) | record_data(whole)))
        return
    for line in letter_lines(whole, buried, dead_letters, kafka.prefix):
        typer.echo(line)


@dead_letters_app.command()
def replay(
    letters: Ids = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    topic: Topic = None,
    role: Role = None,
    error_type: ErrorType = None,
    worker: Worker = None,
    since: Since = None,
    until: Until = None,
    grep: Grep = None,
    all_: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Send the records of letters again: tasks as tasks of a new run, trajectories as they are. Safe to repeat.

    Exit code 1 if a letter cannot be replayed; the others are.
    """
    kafka = _kafka(bootstrap, prefix)
    wanted = _filter(kafka, topic, role, error_type, worker, since, until, grep)
    dead_letters = asyncio.run(read_box(kafka, wanted.fits))
    selected = _selected(dead_letters, letters, wanted, kafka, all_=all_, also="dropped")
    refused = asyncio.run(_replay(kafka, dead_letters, selected, dry_run=dry_run, yes=yes))
    if refused:
        raise typer.Exit(REFUSED)


@dead_letters_app.command()
def drop(
    letters: Ids = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    topic: Topic = None,
    role: Role = None,
    error_type: ErrorType = None,
    worker: Worker = None,
    since: Since = None,
    until: Until = None,
    grep: Grep = None,
    all_: All = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Mark letters as of no interest: list leaves them out. Nothing is deleted; named ones can still be replayed."""
    kafka = _kafka(bootstrap, prefix)
    wanted = _filter(kafka, topic, role, error_type, worker, since, until, grep)
    dead_letters = asyncio.run(read_box(kafka, wanted.fits))
    selected = _selected(dead_letters, letters, wanted, kafka, all_=all_, also=None)
    begun = [each for each in selected if dead_letters.state(each.id) == "replaying"]
    for each in begun:
        typer.echo(f"{each.id.short(kafka.prefix)} is left: its replay has begun, replay it to complete that", err=True)
    open_ = [each.id for each in selected if each not in begun]
    if dry_run or not open_:
        typer.echo(f"{len(open_)} letters to drop" if dry_run else "nothing to drop")
        return
    _confirm(len(open_), f"drop {len(open_)} letters?", yes=yes)
    asyncio.run(_drop(kafka, dead_letters, open_))
    typer.echo(f"{len(open_)} letters dropped")


async def _replay(
    kafka: KafkaSettings, dead_letters: DeadLetterBox, selected: Sequence[BuriedLetter], *, dry_run: bool, yes: bool
) -> bool:
    """Whether a letter was refused."""
    async with DeadLetterDesk(kafka, dead_letters) as desk:
        offer = await desk.offer(selected)
        for line in offer_lines(offer, kafka.prefix):
            typer.echo(line)
        if offer.letters and not dry_run:
            await asyncio.to_thread(_confirm, offer.letters, f"replay {offer.letters} letters?", yes=yes)
            await desk.replay(offer)
    done = "nothing done (--dry-run)" if dry_run else f"{offer.letters} letters replayed"
    typer.echo(f"{done}, {len(offer.refusals)} refused")
    return bool(offer.refusals)


async def _drop(kafka: KafkaSettings, dead_letters: DeadLetterBox, letters: Sequence[LetterId]) -> None:
    async with DeadLetterDesk(kafka, dead_letters) as desk:
        await desk.drop(letters)


async def _whole(kafka: KafkaSettings, buried: BuriedLetter) -> DeadLetter:
    async with aclosing(read_letters(kafka, [buried])) as letters:
        async for letter in letters:
            return letter
    raise SettingsError(f"letter {buried.id.text!r} has just passed its retention: it is gone")


def _selected(
    dead_letters: DeadLetterBox,
    names: Sequence[str] | None,
    wanted: LetterFilter,
    kafka: KafkaSettings,
    *,
    all_: bool,
    also: LetterState | None,
) -> list[BuriedLetter]:
    """Named letters, else those that fit the filter; only such as nothing was done with, or are in state ``also``."""
    if not names:
        if wanted.is_empty and not all_:
            raise SettingsError("which letters? Name them, give a filter (--topic, --since, …), or --all")
        return dead_letters.wanted(UNDECIDED)
    if all_ or not wanted.is_empty:
        raise SettingsError("letters are named: leave the filters out")
    selected: list[BuriedLetter] = []
    for each in _named(dead_letters, names, kafka):
        state = dead_letters.state(each.id)
        if state in UNDECIDED or state == also:
            selected.append(each)
        else:
            typer.echo(f"{each.id.short(kafka.prefix)} is {state} already", err=True)
    return selected


def _named(dead_letters: DeadLetterBox, names: Sequence[str], kafka: KafkaSettings) -> list[BuriedLetter]:
    found: dict[LetterId, BuriedLetter] = {}
    for name in names:
        try:
            letter_id = LetterId.parse(name)
        except InvalidMessageError as error:
            raise SettingsError(str(error)) from error
        candidates = (letter_id, LetterId.parse(f"{kafka.prefix}{name}"))
        buried = next((b for candidate in candidates if (b := dead_letters.get(candidate)) is not None), None)
        if buried is None:
            raise SettingsError(
                f"there is no letter {name!r} under {kafka.prefix!r}; `rollstream dead-letters list --state all`"
            )
        found[buried.id] = buried
    return list(found.values())


def _filter(
    kafka: KafkaSettings,
    topic: str | None,
    role: str | None,
    error_type: str | None,
    worker: str | None,
    since: str | None,
    until: str | None,
    grep: str | None,
) -> LetterFilter:
    return LetterFilter(
        prefix=kafka.prefix,
        topic=topic,
        role=role,
        error_type=error_type,
        worker_id=worker,
        since_s=point_in_time(since, "--since"),
        until_s=point_in_time(until, "--until"),
        text=grep,
    )


def _confirm(letters: int, question: str, *, yes: bool) -> None:
    if letters < 2 or yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError(f"{question} Nobody is there to ask: say --yes")
    typer.confirm(question, abort=True)


def _kafka(bootstrap: str | None, prefix: str | None) -> KafkaSettings:
    return load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}}).kafka
