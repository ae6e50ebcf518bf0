"""What a run shows while it goes on: a table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from fault_plan import Fault
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

LAST_FAULTS = 8
LINE_EVERY_S = 15.0


class LiveView:
    """A context manager; ``say``, ``hurt`` and ``count`` change what is shown."""

    def __init__(self, plan: Sequence[Fault], *, is_plain: bool) -> None:
        self._planned = len(plan)
        self._is_plain = is_plain
        self._state = "starting"
        self._last: deque[str] = deque(maxlen=LAST_FAULTS)
        self._kinds: Counter[str] = Counter()
        self._counts: dict[str, int] = {}
        self._started = time.monotonic()
        self._next_line = 0.0
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, get_renderable=self._shown)

    def __enter__(self) -> Self:
        if not self._is_plain:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not self._is_plain:
            self._live.stop()

    def say(self, state: str) -> None:
        """What goes on now."""
        self._state = state
        self._line()

    def hurt(self, fault: Fault) -> None:
        """A fault begins."""
        self._kinds[f"{fault.role} {fault.kind}"] += 1
        self._last.append(f"{self._clock()}  {fault.role} {fault.slot}  {fault.kind}")

    def crashed(self, name: str) -> None:
        """A process ended that nobody had hurt."""
        self._kinds[f"{name} crash"] += 1
        self._last.append(f"{self._clock()}  {name}  ended by itself")

    def count(self, **counts: int) -> None:
        """Figures by name."""
        self._counts.update(counts)
        if self._is_plain and time.monotonic() > self._next_line:
            self._line()

    def _line(self) -> None:
        if self._is_plain:
            self._next_line = time.monotonic() + LINE_EVERY_S
            counts = ", ".join(f"{name} {value}" for name, value in self._counts.items())
            print(f"{self._clock()} {self._state}: faults {self._begun}/{self._planned}, {counts}", file=sys.stderr)

    @property
    def _begun(self) -> int:
        return sum(self._kinds.values())

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes:02d}:{seconds:02d}"

    def _shown(self) -> Group:
        figures = Table.grid(padding=(0, 2))
        figures.add_row("faults", f"{self._begun} / {self._planned}")
        for name, value in self._counts.items():
            figures.add_row(name.replace("_", " "), str(value))
        kinds = Table.grid(padding=(0, 2))
        for name, times in self._kinds.most_common():
            kinds.add_row(name, str(times))
        side_by_side = Table.grid(padding=(0, 4))
        side_by_side.add_row(figures, kinds, Text("\n".join(self._last)))
        return Group(Text(f"{self._clock()}  {self._state}", style="bold"), side_by_side)
