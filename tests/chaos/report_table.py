"""The report as people read it."""

from __future__ import annotations

from chaos_report import Report
from rich.console import Group
from rich.table import Table
from rich.text import Text
from verdict import TAKEOVER_GRACE_S


def report_table(report: Report) -> Group:
    """What was done, what was kept, what it cost."""
    table = Table(
        title=f"chaos, seed {report.seed}, {report.engine} engine, {report.minutes} min", title_justify="left"
    )
    table.add_column("what")
    table.add_column("value", justify="right")
    table.add_column("promised")
    for role, kinds in report.kills.items():
        table.add_row(f"hurt: {role}", str(sum(kinds.values())), ", ".join(f"{k} {n}" for k, n in kinds.items()))
    table.add_row("processes killed", str(report.processes_killed), "")
    table.add_row("ended by themselves", str(len(report.crashes)), "")
    table.add_section()
    table.add_row("tasks / trajectories", f"{report.tasks} / {report.episodes}", "equal")
    endings = f"{report.completed} / {report.truncated} / {report.aborted} / {report.failed}"
    table.add_row("completed / truncated / aborted / failed", endings, "")
    _promise(table, "lost", report.lost)
    _promise(table, "never trained on", report.untrained)
    _promise(table, "trained twice", report.trained_twice)
    _promise(table, "trained, but not the first record", report.trained_unequal)
    _promise(table, "trained out of order", int(report.trained_out_of_order))
    table.add_row("published again", str(report.copies), "")
    _promise(table, "unequal copies", report.unequal_copies)
    _promise(table, "foreign tool histories", report.broken_histories)
    table.add_section()
    table.add_row("generations", str(report.generations), "")
    table.add_row("episodes hit / by a death", f"{report.episodes_hit} / {report.episodes_killed}", "")
    table.add_row("repeated per change of hands, most", str(report.generations_repeated_max), "<= 1")
    table.add_row("repeated per episode killed, mean", str(report.generations_repeated_mean), "<= 1")
    table.add_row("by a woken worker that could not know", str(report.generations_repeated_blindly), "<= 1 per freeze")
    _promise(table, "repeated though finished or undisturbed", report.generations_repeated_unfair)
    table.add_section()
    bar = f"<= {report.session_timeout_s + TAKEOVER_GRACE_S:g} s"
    takeovers = (report.takeover_s_p50, report.takeover_s_p99, report.takeover_s_max)
    table.add_row("takeover p50 / p99 / max", _times(*takeovers), "")
    clean = (report.takeover_clean_s_p50, report.takeover_clean_s_p99, report.takeover_clean_s_max)
    table.add_row(f"of these undisturbed ({report.takeover_clean})", _times(*clean), bar)
    rates = (report.throughput_before, report.throughput_during, report.throughput_after)
    table.add_row("trajectories/s before / during / after", " / ".join(f"{each:.2f}" for each in rates), "")
    table.add_row("recovery", _times(report.recovery_s), "")
    table.add_row("left later than allowed", str(report.left_late), "")
    _promise(table, "processes that outlived their parents", len(report.orphans))
    table.add_row("dead letters", str(sum(report.dead_letters.values())), "")
    verdict = [Text(f"BROKEN: {each}", style="bold red") for each in report.broken]
    return Group(table, *(verdict or [Text("every promise was kept", style="bold green")]))


def _promise(table: Table, what: str, count: int) -> None:
    table.add_row(what, str(count), "0", style="bold red" if count else None)


def _times(*seconds: float | None) -> str:
    return " / ".join("-" if each is None else f"{each:.1f} s" for each in seconds)
