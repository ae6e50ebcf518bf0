"""Which letters a filter lets through."""

from __future__ import annotations

import msgspec
import pytest
import zstandard

from rollstream.schemas.codec import encode
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.schemas.tasks import ChatMessage, RolloutTask
from rollstream.transport.dead_letter_box.selection import LetterFilter, record_body

TASK = encode(
    RolloutTask(
        run_id="r", group_id="0" * 32, group_index=0, group_size=1, member_index=0, trajectory_id="t",
        messages=[ChatMessage(role="user", content="Where is Zürich? " * 2000)],
    )
)  # fmt: skip
LETTER = DeadLetter(
    origin_topic="p.tool-calls.browser",
    origin_partition=0,
    origin_offset=0,
    key=b"The-Key",
    value=TASK.value,
    headers=TASK.headers,
    role="tool-worker",
    worker_id="w1",
    error_type="ValueError",
    error="It broke",
    stack='File "agent.py", line 3',
    failed_at=100.0,
)

FITTING: list[dict[str, object]] = [
    {},
    {"topic": "p.tool-calls.browser"},
    {"topic": "tool-calls.browser"},
    {"topic": "tool-calls"},
    {"role": "tool-worker"},
    {"error_type": "ValueError"},
    {"worker_id": "w1"},
    {"since_s": 100.0},
    {"until_s": 100.1},
    {"text": "it BROKE"},
    {"text": "valueerror"},
    {"text": "Agent.py"},
    {"text": "the-key"},
    {"text": "schema=ROLLOUT"},
    {"text": "where is zürich"},
    {"topic": "tool-calls", "role": "tool-worker", "text": "broke", "since_s": 1.0, "until_s": 101.0},
]
FAILING: list[dict[str, object]] = [
    {"topic": "tool"},
    {"topic": "tasks"},
    {"topic": "other.tool-calls.browser"},
    {"role": "trainer"},
    {"error_type": "Value"},
    {"worker_id": "w"},
    {"since_s": 100.5},
    {"until_s": 100.0},
    {"text": "it broke twice"},
    {"topic": "tool-calls", "role": "trainer"},
]


@pytest.mark.parametrize("options", FITTING, ids=str)
def test_what_fits_goes_through(options: dict[str, object]) -> None:
    assert msgspec.convert({"prefix": "p.", **options}, LetterFilter).fits(LETTER)


@pytest.mark.parametrize("options", FAILING, ids=str)
def test_what_does_not_fit_is_held_back(options: dict[str, object]) -> None:
    assert not msgspec.convert({"prefix": "p.", **options}, LetterFilter).fits(LETTER)


def test_the_compressed_value_is_looked_into() -> None:
    assert ("content-encoding", b"zstd") in LETTER.headers
    assert b"Where is" not in (LETTER.value or b"")
    assert b"Where is Z" in record_body(LETTER)


def test_a_value_that_only_claims_to_be_compressed_is_taken_as_it_is() -> None:
    torn = zstandard.compress(b"abc" * 100)[:-3]
    assert record_body(msgspec.structs.replace(LETTER, value=torn)) == torn
    assert record_body(msgspec.structs.replace(LETTER, value=None, headers=[])) == b""


def test_an_empty_filter_knows_that_it_is_one() -> None:
    assert LetterFilter(prefix="p.").is_empty
    assert not LetterFilter(prefix="p.", since_s=0.0).is_empty
