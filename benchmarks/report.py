"""Figures for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from figures import Figure
from rich.table import Table


def figures_json(figures: Sequence[Figure]) -> str:
    """A JSON list with one object per figure."""
    return json.dumps([asdict(figure) for figure in figures], indent=1) + "\n"


def write_figures(figures: Sequence[Figure], path: Path) -> None:
    """Write the list; the file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(figures_json(figures))
    fresh.replace(path)


def figures_table(figures: Sequence[Figure], *, title: str = "") -> Table:
    """One row per figure, one column for the verdict."""
    table = Table(title=title or None, title_justify="left")
    for column, justify in (("figure", "left"), ("value", "right"), ("bar", "right"), ("verdict", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    table.add_column("note", overflow="fold")
    for each in figures:
        name = f"{each.name}\n[dim]against {each.versus}[/dim]" if each.versus else each.name
        table.add_row(name, f"{shown(each.value)} {each.unit}", bar(each), verdict(each), each.note)
    return table


def bar(figure: Figure) -> str:
    """What has to be reached, with its direction."""
    if figure.bar is None:
        return "-"
    return f"{'>=' if figure.higher_is_better else '<='} {figure.bar:g}"


def verdict(figure: Figure) -> str:
    """One word, coloured."""
    if figure.bar is None:
        return ""
    return "[green]met[/green]" if figure.met else "[red]missed[/red]"


def shown(value: float) -> str:
    """Three significant digits, all digits of large numbers."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
