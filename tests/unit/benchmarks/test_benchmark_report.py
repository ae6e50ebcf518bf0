from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.bare_engine import EpisodeRun, steady_throughput
from benchmarks.figures import Figure, figure
from benchmarks.report import figures_table, shown, write_figures
from benchmarks.run import default_output
from benchmarks.workbench import percentile
from rich.console import Console


def latency(value: float, bar: float | None = 5.0) -> Figure:
    return figure("latency", value, "ms", bar=bar, higher_is_better=False, command="python x.py", versus="others")


@pytest.mark.parametrize(
    ("value", "bar", "higher_is_better", "met"),
    [
        (5.0, 5.0, True, True),
        (4.9, 5.0, True, False),
        (5.0, 5.0, False, True),
        (5.1, 5.0, False, False),
        (0.0, None, True, True),
    ],
)
def test_a_bar_is_met_when_it_is_reached(value: float, bar: float | None, higher_is_better: bool, met: bool) -> None:
    assert figure("x", value, "s", bar=bar, higher_is_better=higher_is_better, command="").met is met


def test_the_file_is_a_list_of_figures_with_all_their_fields(tmp_path: Path) -> None:
    path = tmp_path / "made" / "figures.json"
    write_figures([latency(4.0), latency(6.0, bar=None)], path)
    first, second = json.loads(path.read_text())
    assert first == {
        "name": "latency",
        "value": 4.0,
        "unit": "ms",
        "bar": 5.0,
        "higher_is_better": False,
        "met": True,
        "versus": "others",
        "command": "python x.py",
        "note": "",
    }
    assert second["bar"] is None
    assert [each.name for each in path.parent.iterdir()] == ["figures.json"]


def test_the_table_says_what_was_missed_and_in_which_direction() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(figures_table([latency(4.0), latency(6.0), latency(7.0, bar=None)]))
    text = capture.get()
    assert text.count("<= 5") == 2
    assert (text.count("met"), text.count("missed")) == (1, 1)
    assert text.count("against others") == 3


@pytest.mark.parametrize(("value", "text"), [(12345.6, "12,346"), (0.98765, "0.988"), (2.0, "2")])
def test_values_show_three_digits(value: float, text: str) -> None:
    assert shown(value) == text


def test_only_a_complete_run_becomes_the_latest() -> None:
    assert default_output([], is_quick=False).name == "latest.json"
    assert default_output([], is_quick=True).name == "quick.json"
    assert default_output(["wire", "event_loop"], is_quick=False).name == "wire-event_loop.json"


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(range(100), 0.99) == 99
    assert percentile([7.0], 0.99) == 7.0


def test_throughput_is_measured_while_every_slot_is_taken() -> None:
    runs = [EpisodeRun(0.0, 4.0, 100), EpisodeRun(0.0, 9.0, 1000), EpisodeRun(4.0, 6.0, 10), EpisodeRun(8.0, 99.0, 5)]
    steady = steady_throughput(runs)
    assert (steady.tokens, steady.wall_s) == (110, 8.0)
