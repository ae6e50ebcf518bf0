"""How letters look."""

from __future__ import annotations

import io
import json
from base64 import b64decode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rollstream.cli.dead_letter_view import (
    SHOWN_ITEMS,
    harmless,
    hex_dump,
    letter_data,
    letter_lines,
    letter_table,
    offer_lines,
    readable,
    record_data,
    summary_line,
    value_lines,
)
from rollstream.schemas.codec import encode
from rollstream.schemas.control import Pause
from rollstream.schemas.dead_letters import DeadLetter, DeadLetterResolution
from rollstream.transport.dead_letter_box.desk import ReplayOffer
from rollstream.transport.dead_letter_box.letters import BuriedLetter, DeadLetterBox, LetterId, ReplayPlan
from rollstream.transport.dead_letter_box.replaying import Refusal

ESCAPE = "\x1b[31m"


def letter(value: bytes | None = b"\xff\x00", headers: list[tuple[str, bytes]] | None = None) -> DeadLetter:
    return DeadLetter(
        origin_topic="p.tasks", origin_partition=3, origin_offset=17, key=b"k\x1b", value=value,
        headers=headers or [("schema", ESCAPE.encode())], role="rollout-worker", worker_id="w1",
        error_type="ValueError", error=f"first {ESCAPE}\nsecond", stack=f'File "a.py"{ESCAPE}\n  line', attempts=2,
        failed_at=100.0,
    )  # fmt: skip


def box_with(found: DeadLetter) -> tuple[DeadLetterBox, BuriedLetter]:
    box = DeadLetterBox()
    box.bury(found, 0, 0)
    [buried] = box.wanted(["open"])
    return box, buried


def test_everything_about_a_letter_is_shown_and_nothing_of_it_controls_the_terminal() -> None:
    found = letter()
    box, buried = box_with(found)
    box.bury(found, 0, 1)
    text = "\n".join(letter_lines(found, buried, box, "p."))
    for part in (
        "tasks/3/17", "topic p.tasks, partition 3, offset 17", "rollout-worker w1", "attempts  2",
        "ValueError: first", "second", 'File "a.py"', "schema: ", "2 bytes", "ff 00", "open",
    ):  # fmt: skip
        assert part in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_the_number_of_burials_is_told() -> None:
    box, _ = box_with(letter())
    box.bury(letter(), 0, 1)
    [buried] = box.wanted(["open"])
    assert "buried 2 times" in "\n".join(letter_lines(letter(), buried, box, "p."))


def test_what_was_done_is_shown_with_time_and_name() -> None:
    box, buried = box_with(letter())
    box.resolve(
        DeadLetterResolution(
            state="replaying", letters=["p.tasks/3/17"], run_id="r.replay-0", group_size=1, resolved_at=5.0,
            resolved_by="ann@h",
        )
    )  # fmt: skip
    text = "\n".join(letter_lines(letter(), buried, box, "p."))
    assert "replaying at 1970-01-01" in text
    assert "by ann@h, as run r.replay-0" in text
    assert letter_data(buried, box, "p.")["replay_run_id"] == "r.replay-0"


def test_a_tombstone_and_a_cut_record_say_what_they_are() -> None:
    box, buried = box_with(letter(None))
    assert "value     none (a tombstone)" in "\n".join(letter_lines(letter(None), buried, box, "p."))
    cut = msgspec.structs.replace(letter(), bytes_missing=99)
    assert "99 bytes of the record are missing" in "\n".join(letter_lines(cut, buried, box, "p."))


@pytest.mark.parametrize(
    ("value", "kind", "shown"),
    [
        (msgspec.msgpack.encode({"a": [1, {"b": "x"}]}), "as msgpack", '"b": "x"'),
        (msgspec.msgpack.encode({"a": msgspec.msgpack.Ext(9, b"\x01")}), "as msgpack", "Ext"),
        (msgspec.msgpack.encode({"a": list(range(1000))}), "as msgpack", f"… {1000 - SHOWN_ITEMS} more"),
        ("plain täxt\nlines".encode(), "as text", "plain täxt"),
        (b"\xff\x00rubbish", "9 bytes", "ff 00 72 75 62 62 69 73 68"),
        (b"", "0 bytes", ""),
    ],
)
def test_a_value_is_decoded_as_far_as_possible(value: bytes, kind: str, shown: str) -> None:
    found, lines = value_lines(letter(value))
    assert found == kind
    assert shown in "\n".join(lines)


def test_a_message_of_ours_is_shown_by_its_fields() -> None:
    record = encode(Pause(is_paused=True, reason="because"))
    kind, lines = value_lines(letter(record.value, record.headers))
    assert kind == "as Pause"
    assert json.loads("\n".join(lines))["reason"] == "because"


@given(st.binary(max_size=3000))
def test_whatever_the_bytes_are_they_are_shown_harmlessly(value: bytes) -> None:
    _, lines = value_lines(letter(value))
    assert all(line.isprintable() for line in lines)
    dumped = [line[10:57].split() for line in hex_dump(value, limit_bytes=10_000)]
    assert bytes.fromhex("".join("".join(row) for row in dumped)) == value


@given(st.text())
def test_control_characters_become_visible(text: str) -> None:
    assert harmless(text).isprintable()
    if text.isprintable():
        assert harmless(text) == text


def test_bytes_read_as_text_where_they_are_some() -> None:
    assert [readable(b"abc"), readable(b"\xff"), readable(b"a\x1b")] == ["abc", "b'\\xff'", "b'a\\x1b'"]


def test_the_table_names_letter_state_and_cause() -> None:
    box, buried = box_with(letter())
    screen = io.StringIO()
    Console(file=screen, width=140).print(letter_table([buried], box, "p."))
    assert all(part in screen.getvalue() for part in ("tasks/3/17", "open", "rollout-worker", "ValueError: first"))
    assert "\x1b" not in screen.getvalue()


def test_json_holds_all_but_the_record() -> None:
    box, buried = box_with(letter())
    data = json.loads(json.dumps(letter_data(buried, box, "p.")))
    assert (data["id"], data["state"], data["topic"], data["partition"], data["offset"]) == (
        "tasks/3/17", "open", "p.tasks", 3, 17,
    )  # fmt: skip
    assert (data["value_bytes"], data["attempts"], data["burials"]) == (2, 2, 1)


def test_json_of_one_letter_holds_the_record_too() -> None:
    data = json.loads(json.dumps(record_data(letter())))
    assert (b64decode(data["value"]), b64decode(data["key"])) == (b"\xff\x00", b"k\x1b")
    assert [(name, b64decode(content)) for name, content in data["headers"]] == [("schema", ESCAPE.encode())]
    assert data["stack"].startswith('File "a.py"')
    assert record_data(letter(None))["value"] is None


def test_an_offer_says_what_will_happen_and_what_will_not() -> None:
    plan = ReplayPlan("r.replay-0", (LetterId("p.tasks", 0, 1), LetterId("p.tasks", 0, 2)), 2, 5.0)
    offer = ReplayOffer(
        begun=(plan,),
        plans=(plan,),
        copies=(LetterId("p.trajectories", 0, 1),),
        refusals=(Refusal(LetterId("p.journal", 1, 2), "its order counts"),),
    )
    lines = list(offer_lines(offer, "p."))
    assert lines[0].startswith("2 tasks in 1 group of 2 as run 'r.replay-0', begun at 1970-01-01")
    assert lines[1:] == [
        "2 tasks in 1 group of 2 as run 'r.replay-0'",
        "1 trajectory appended again, byte for byte",
        "journal/1/2 cannot be replayed: its order counts",
    ]
    assert (offer.tasks, offer.letters) == (4, 5)


def test_a_list_that_is_cut_says_so() -> None:
    _, buried = box_with(letter())
    assert summary_line([buried] * 3, 2) == "2 of 3 letters; --limit shows more"
    assert [summary_line([buried], 1), summary_line([], 0)] == ["1 letter", "0 letters"]
