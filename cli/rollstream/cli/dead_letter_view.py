"""Dead letters for people and for machines. Pure.

What stands in a letter may be anything, so nothing of it reaches a terminal as a control character.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from rollstream.schemas.codec import decode
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.errors import InvalidMessageError
from rollstream.schemas.json_schemas import json_view
from rollstream.schemas.registry import MESSAGES
from rollstream.transport.dead_letter_box.desk import ReplayOffer
from rollstream.transport.dead_letter_box.letters import BuriedLetter, DeadLetterBox, ReplayPlan
from rollstream.transport.dead_letter_box.selection import record_body

DUMP_BYTES = 1024
SHOWN_ITEMS = 32
SHOWN_CHARS = 4000
ROW_BYTES = 16


def letter_table(letters: Sequence[BuriedLetter], dead_letters: DeadLetterBox, prefix: str) -> Table:
    """One row per letter."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("letter", "state", "failed"):
        table.add_column(column, no_wrap=True)
    table.add_column("by", min_width=14)
    table.add_column("times", justify="right")
    table.add_column("cause", ratio=1, min_width=20)
    for each in letters:
        first_line = each.head.error.partition("\n")[0]
        cause = f"{each.head.error_type}: {first_line}"
        row = (
            each.id.short(prefix),
            dead_letters.state(each.id),
            _brief_time(each.last_failed_at),
            f"{each.head.role} {each.head.worker_id}".strip(),
            str(each.burials),
            cause,
        )
        table.add_row(*(Text(harmless(cell)) for cell in row))
    return table


def letter_data(letter: BuriedLetter, dead_letters: DeadLetterBox, prefix: str) -> dict[str, Any]:
    """One letter for machines, without its value and stack."""
    head, resolution = letter.head, dead_letters.resolution(letter.id)
    plan = dead_letters.plan_of(letter.id)
    return {
        "id": letter.id.short(prefix),
        "state": dead_letters.state(letter.id),
        "topic": head.origin_topic,
        "partition": head.origin_partition,
        "offset": head.origin_offset,
        "role": head.role,
        "worker_id": head.worker_id,
        "error_type": head.error_type,
        "error": head.error,
        "attempts": head.attempts,
        "burials": letter.burials,
        "first_failed_at": letter.first_failed_at,
        "last_failed_at": letter.last_failed_at,
        "value_bytes": letter.value_bytes,
        "bytes_missing": head.bytes_missing,
        "resolved_at": resolution.resolved_at if resolution else None,
        "resolved_by": resolution.resolved_by if resolution else None,
        "replay_run_id": plan.run_id if plan else None,
    }


def record_data(letter: DeadLetter) -> dict[str, Any]:
    """Stack and record for machines; bytes in base64."""
    view = json_view(letter)
    return {name: view[name] for name in ("stack", "key", "headers", "value")}


def letter_lines(letter: DeadLetter, buried: BuriedLetter, dead_letters: DeadLetterBox, prefix: str) -> Iterator[str]:
    """Everything about one letter."""
    facts = letter_data(buried, dead_letters, prefix)
    failed = iso_time(buried.last_failed_at)
    if buried.burials > 1:
        failed += f" (buried {buried.burials} times since {iso_time(buried.first_failed_at)})"
    resolved = f" at {iso_time(facts['resolved_at'])} by {facts['resolved_by']}" if facts["resolved_at"] else ""
    replayed_as = f", as run {facts['replay_run_id']}" if facts["replay_run_id"] else ""
    size = "none (a tombstone)" if letter.value is None else f"{len(letter.value)} bytes"
    if letter.bytes_missing:
        size += f"; {letter.bytes_missing} bytes of the record are missing, they did not fit into a letter"
    rows = {
        "letter": facts["id"],
        "state": f"{facts['state']}{resolved}{replayed_as}",
        "record": f"topic {letter.origin_topic}, partition {letter.origin_partition}, offset {letter.origin_offset}",
        "failed": failed,
        "at": f"{letter.role} {letter.worker_id}".strip(),
        "attempts": str(letter.attempts),
        "cause": f"{letter.error_type}: {letter.error}",
        "key": "none" if letter.key is None else readable(letter.key),
        "value": size,
    }
    for name, text in rows.items():
        yield f"{name:<9} {harmless(text)}"
    for name, data in letter.headers:
        yield f"{'header':<9} {harmless(name)}: {readable(data)}"
    yield from ("", "stack", *(f"  {harmless(line)}" for line in letter.stack.rstrip().splitlines() or ["none"]))
    if letter.value is not None:
        kind, lines = value_lines(letter)
        yield from ("", f"value, {kind}", *(f"  {line}" for line in lines))


def value_lines(letter: DeadLetter) -> tuple[str, list[str]]:
    """The value decoded as far as possible: a message of ours, msgpack, text, or bytes; and what it was taken for."""
    try:
        message = decode(letter.value, letter.headers, *MESSAGES)
        return f"as {type(message).__name__}", _as_json(json_view(message))
    except InvalidMessageError:
        body = record_body(letter)
    try:
        content: Any = msgspec.msgpack.decode(body)
        if isinstance(content, dict | list):
            return "as msgpack", _as_json(cast("object", content))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and all(character.isprintable() or character in "\r\n\t" for character in text):
        return "as text", [harmless(line) for line in _cut(text).splitlines()]
    return f"{len(body)} bytes", list(hex_dump(body))


def hex_dump(data: bytes, *, limit_bytes: int = DUMP_BYTES) -> Iterator[str]:
    """Offset, bytes in hexadecimal, and what is printable of them."""
    for start in range(0, min(len(data), limit_bytes), ROW_BYTES):
        row = data[start : start + ROW_BYTES]
        printable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{start:08x}  {row.hex(' '):<{3 * ROW_BYTES}} {printable}"
    if len(data) > limit_bytes:
        yield f"… and {len(data) - limit_bytes} bytes more"


def offer_lines(offer: ReplayOffer, prefix: str) -> Iterator[str]:
    """What a replay will do, or has done."""
    for plan in offer.begun:
        yield f"{_plan_text(plan)}, begun at {iso_time(plan.planned_at)}"
    for plan in offer.plans:
        yield _plan_text(plan)
    if offer.copies:
        yield f"{_count(len(offer.copies), 'trajectory', 'trajectories')} appended again, byte for byte"
    for refusal in offer.refusals:
        yield harmless(f"{refusal.id.short(prefix)} cannot be replayed: {refusal.reason}")


def _plan_text(plan: ReplayPlan) -> str:
    tasks = _count(len(plan.letters), "task", "tasks")
    return harmless(f"{tasks} in {_count(plan.groups, 'group', 'groups')} of {plan.group_size} as run {plan.run_id!r}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def iso_time(at: float) -> str:
    """Local time to the second."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(sep=" ", timespec="seconds") if at else "unknown"


def _brief_time(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%m-%d %H:%M:%S") if at else "unknown"


def readable(data: bytes) -> str:
    """Bytes as text if they are some, else as a Python literal."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _cut(repr(data))
    return _cut(text) if text.isprintable() else _cut(repr(data))


def harmless(text: str) -> str:
    """The text with every control character made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _as_json(view: object) -> list[str]:
    encoded = msgspec.json.encode(_shortened(view), enc_hook=repr)
    return [harmless(line) for line in msgspec.json.format(encoded, indent=2).decode().splitlines()]


def _shortened(view: object) -> object:
    """Long lists and texts without their ends."""
    match view:
        case dict():
            return {str(key): _shortened(value) for key, value in cast("dict[object, object]", view).items()}
        case list():
            items = cast("list[object]", view)
            more = [f"… {len(items) - SHOWN_ITEMS} more"] if len(items) > SHOWN_ITEMS else []
            return [*map(_shortened, items[:SHOWN_ITEMS]), *more]
        case str():
            return _cut(view)
        case bytes():
            return readable(view)
        case _:
            return view


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}… {len(text) - SHOWN_CHARS} characters more"


def summary_line(letters: Iterable[BuriedLetter], shown: int) -> str:
    """How many there are beside those that are shown."""
    total = len(list(letters))
    return f"{shown} of {total} letters; --limit shows more" if shown < total else _count(total, "letter", "letters")
