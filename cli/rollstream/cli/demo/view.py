"""Where the demo's picture goes: a live panel on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from rollstream.cli.demo.flow import FlowSnapshot
from rollstream.cli.demo.picture import flow_line, flow_panel

LIVE_INTERVAL_S = 0.5
LINE_INTERVAL_S = 5.0


class DemoView:
    """Plain lines: every change of a part, and the flow every five seconds."""

    interval_s = LINE_INTERVAL_S

    def __init__(self, console: Console, *, title: str, steps: int) -> None:
        self.console = console
        self.title = title
        self.steps = steps
        self.phases: dict[str, str] = {}
        self._started = time.monotonic()

    def phase(self, part: str, state: str) -> None:
        """A part of the demo came one step further."""
        if self.phases.get(part) != state:
            self.phases[part] = state
            elapsed_s = time.monotonic() - self._started
            self.console.print(f"[{elapsed_s:5.0f} s] {part}: {state}", markup=False, highlight=False)

    def show(self, snapshot: FlowSnapshot, elapsed_s: float) -> None:
        """The flow now."""
        self.console.print(flow_line(snapshot, elapsed_s), markup=False, highlight=False, soft_wrap=True)


class LiveDemoView(DemoView):
    """A panel that is drawn anew twice a second."""

    interval_s = LIVE_INTERVAL_S

    def __init__(self, console: Console, live: Live, *, title: str, steps: int) -> None:
        super().__init__(console, title=title, steps=steps)
        self._live = live
        self._snapshot = FlowSnapshot()

    def phase(self, part: str, state: str) -> None:
        """A part of the demo came one step further."""
        self.phases[part] = state
        self._draw(time.monotonic() - self._started)

    def show(self, snapshot: FlowSnapshot, elapsed_s: float) -> None:
        """The flow now."""
        self._snapshot = snapshot
        self._draw(elapsed_s)

    def _draw(self, elapsed_s: float) -> None:
        panel = flow_panel(
            self._snapshot, title=self.title, elapsed_s=elapsed_s, phases=list(self.phases.items()), steps=self.steps
        )
        self._live.update(panel, refresh=True)


@contextmanager
def a_demo_view(console: Console, *, is_live: bool, title: str, steps: int) -> Generator[DemoView]:
    """The view that suits the console."""
    if not is_live:
        yield DemoView(console, title=title, steps=steps)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveDemoView(console, live, title=title, steps=steps)
