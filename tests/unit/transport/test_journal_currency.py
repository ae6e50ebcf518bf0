"""Currency: what was read is acted upon only if nobody can have gone on meanwhile, or their records have been read."""

from __future__ import annotations

from rollstream.transport.journal.currency import Currency

LEASE_S = 6.0


class Reader:
    """Reads one partition on a clock of the test's own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.currency = Currency(LEASE_S, monotonic=lambda: self.now)

    def read(self, position: int, end: int, *, after_s: float = 0.2) -> None:
        """As the keeper does after each fetch."""
        self.now += after_s
        if self.currency.asks_for_ends():
            self.currency.must_reach({0: end})
        self.currency.read_to({0: position})


def test_a_reader_that_reads_on_is_current_however_long() -> None:
    reader = Reader()
    for _ in range(100):
        reader.read(0, end=10)
        assert reader.currency.is_held


def test_after_a_freeze_nothing_is_current_until_all_that_was_written_has_been_read() -> None:
    reader = Reader()
    reader.read(5, end=5)
    reader.now += LEASE_S + 1
    assert not reader.currency.is_held
    reader.read(5, end=9)
    assert not reader.currency.is_held
    reader.read(8, end=20)
    assert not reader.currency.is_held
    reader.read(9, end=20)
    assert reader.currency.is_held


def test_a_freeze_between_the_question_and_the_note_is_noticed_too() -> None:
    reader = Reader()
    assert not reader.currency.asks_for_ends()
    reader.now += LEASE_S + 1
    reader.currency.read_to({0: 5})
    assert not reader.currency.is_held
    reader.read(5, end=7)
    assert not reader.currency.is_held


def test_ends_of_partitions_that_have_left_or_come_meanwhile_hold_nobody_up() -> None:
    reader = Reader()
    reader.now += LEASE_S + 1
    assert reader.currency.asks_for_ends()
    reader.currency.must_reach({0: 9})
    reader.currency.read_to({1: 0})
    assert reader.currency.is_held


def test_a_second_freeze_while_reading_up_moves_the_mark() -> None:
    reader = Reader()
    reader.read(0, end=4, after_s=LEASE_S + 1)
    reader.now += LEASE_S + 1
    reader.read(4, end=9)
    assert not reader.currency.is_held
    reader.read(9, end=12)
    assert reader.currency.is_held
