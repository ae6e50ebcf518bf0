"""A measured figure and the bar it is held against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table of `make bench`.

    Attributes:
        name: what was measured.
        value: in ``unit``.
        unit: of value and bar.
        bar: what it has to reach; None: shown for comparison only.
        higher_is_better: whether reaching the bar means being at least, or at most, as large.
        met: whether the bar is reached; true where there is none.
        versus: what it is compared with; empty: the bar is absolute.
        command: what measures it again.
        note: how it was measured; where the bar is missed, by how much and where the time goes.
    """

    name: str
    value: float
    unit: str
    bar: float | None
    higher_is_better: bool
    met: bool
    versus: str
    command: str
    note: str = ""


def figure(
    name: str,
    value: float,
    unit: str,
    *,
    command: str,
    bar: float | None = None,
    higher_is_better: bool = True,
    versus: str = "",
    note: str = "",
) -> Figure:
    """A figure with its verdict."""
    met = bar is None or (value >= bar if higher_is_better else value <= bar)
    return Figure(
        name=name,
        value=value,
        unit=unit,
        bar=bar,
        higher_is_better=higher_is_better,
        met=met,
        versus=versus,
        command=command,
        note=note,
    )
