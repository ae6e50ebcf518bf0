"""How a snapshot of the flow looks: a panel for terminals, a line for logs. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rollstream.cli.demo.flow import FlowSnapshot
from rollstream.cli.demo.summary import RunSummary

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], low: float = 0.0, high: float = 1.0) -> str:
    """One block per value; values outside [low, high] are drawn at the edge."""
    top = len(BLOCKS) - 1
    span = high - low
    return "".join(BLOCKS[min(top, max(0, int((value - low) / span * top + 0.5)))] for value in values)


def shown(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none yet."""
    return "-" if value is None else f"{value:.{digits}f}"


def flow_line(snapshot: FlowSnapshot, elapsed_s: float) -> str:
    """The snapshot in one line, for logs."""
    version = "-" if snapshot.policy_version is None else f"v{snapshot.policy_version}"
    return (
        f"[{elapsed_s:5.0f} s] tasks {snapshot.tasks_emitted} ({snapshot.tasks_open} open), "
        f"episodes {snapshot.episodes_running}, tool calls {snapshot.tool_calls}, "
        f"trajectories {snapshot.trajectories}, policy {version}, staleness {snapshot.staleness:.1f}, "
        f"reward {shown(snapshot.reward)}, tool-call rate {shown(snapshot.tool_call_rate)}, "
        f"{snapshot.tokens_per_s:.0f} tokens/s"
    )


def flow_panel(
    snapshot: FlowSnapshot, *, title: str, elapsed_s: float, phases: Sequence[tuple[str, str]], steps: int
) -> RenderableType:
    """The live picture: the parts being started, then the flow from prompts to policy."""
    parts = Table.grid(padding=(0, 2))
    for name, state in phases:
        parts.add_row(Text(name, style="bold"), Text(state, style="green" if state.startswith("ready") else "yellow"))
    flow = Table.grid(padding=(0, 2), expand=True)
    for _ in range(4):
        flow.add_column(justify="left", ratio=1)
    version = "-" if snapshot.policy_version is None else str(snapshot.policy_version)
    cells = (
        ("tasks", f"{snapshot.tasks_emitted} ({snapshot.tasks_open} open)"),
        ("episodes running", str(snapshot.episodes_running)),
        ("tool calls", f"{snapshot.tool_calls} → {snapshot.tool_results}"),
        ("trajectories", f"{snapshot.trajectories}" + (f" ({snapshot.failed} failed)" if snapshot.failed else "")),
        ("policy version", f"{version} of {steps}"),
        ("staleness", f"{snapshot.staleness:.1f} (max {snapshot.max_staleness})"),
        ("tool-call rate", shown(snapshot.tool_call_rate)),
        ("tokens/s", f"{snapshot.tokens_per_s:.0f}"),
    )
    for row in (cells[:4], cells[4:]):
        flow.add_row(*(Text(label, style="dim") for label, _ in row))
        flow.add_row(*(Text(value, style="bold") for _, value in row))
    reward = Text.assemble(
        ("mean reward ", "dim"),
        (shown(snapshot.reward), "bold"),
        "  ",
        (sparkline(snapshot.reward_curve), "cyan"),
    )
    return Panel(
        Group(parts, Text(), flow, Text(), reward),
        title=title,
        subtitle=f"{elapsed_s:.0f} s",
        title_align="left",
        subtitle_align="right",
    )


def summary_panel(summary: RunSummary, folder: str) -> RenderableType:
    """What the run ends with on the screen."""
    table = Table.grid(padding=(0, 2))
    rows = (
        ("mean sampled reward", f"{shown(summary.reward_first)} → {shown(summary.reward_last)}"),
        ("tool-call rate", f"{shown(summary.tool_call_rate_first)} → {shown(summary.tool_call_rate_last)}"),
        ("well-formed rate", f"{shown(summary.well_formed_rate_first)} → {shown(summary.well_formed_rate_last)}"),
        (
            "trajectories",
            (
                f"{summary.trajectories_produced} produced, {summary.trajectories_consumed} consumed, "
                f"{summary.duplicates_dropped} duplicates dropped, {summary.lost} lost"
            ),
        ),
        ("policy versions", f"{summary.policy_versions}, greatest staleness {summary.max_staleness}"),
        (
            "speed",
            f"{summary.tokens_per_s:.0f} sampled tokens/s, {summary.wall_s:.0f} s in all"
            + (f", in {summary.sessions} sessions" if summary.sessions > 1 else ""),
        ),
        ("files", f"{folder}: summary.json, curves.png, trajectories/, logs/"),
    )
    for label, value in rows:
        table.add_row(Text(label, style="dim"), Text(value))
    return Panel(table, title=f"run {summary.name}, seed {summary.seed}", title_align="left")
