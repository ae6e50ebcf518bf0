"""Chaos on the real thing: ``python tests/chaos/run.py --kills 50 --seed 1 [--engine vllm] [--minutes 5]``.

Real broker, real processes. They are killed, frozen, cut off, scaled and told to leave at moments drawn from the seed;
then independent witnesses are asked what was lost, trained twice or generated again. Exit code 1: a promise broke.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
from chaos_report import Report
from chaos_workload import PREFIX, Workload
from evidence import Evidence
from fault_plan import Cluster as Shape
from fault_plan import Kind, plan_faults
from live_view import LiveView
from process_sweep import sweep
from progress import Timing
from report_table import report_table
from rich.console import Console
from stage import Stage
from verdict import judge

FOLDER = Path("runs") / "chaos"
INTERRUPTED = 130
INTERVAL_S = 2.0
GROUPS_PER_S = 4.0
"""More than this machine works off, so that the prompts do not run out."""
SPARE_GROUPS = 400
LONGEST_ALONE_S = 25.0
"""Of a fault that waits until everything has healed."""
VLLM_KINDS: frozenset[Kind] = frozenset(
    {"kill", "kill_replaced", "freeze", "freeze_long", "kill_at_step", "term", "cut_black_hole"}
)
SHAPES = {
    "scripted": Shape(),
    "vllm": Shape(rollout_workers=2, max_rollout_workers=2, tool_workers=1, start_s=25.0, kinds=VLLM_KINDS),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, report; the exit code says whether every promise was kept."""
    options = _parse(arguments)
    if options.judge is not None:
        evidence = msgspec.json.decode(options.judge.read_bytes(), type=Evidence)
        return _reported(options, _judged(options, evidence))
    logging.basicConfig(level=logging.CRITICAL)  # the broker is away on purpose
    marker = f"chaos-{secrets.token_hex(6)}"
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        report, evidence = asyncio.run(_run(options, folder, marker))
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        sweep(marker, folder)
        _keep_logs(folder, options.output.parent)
        shutil.rmtree(folder, ignore_errors=True)
    code = _reported(options, report)
    (options.output.parent / "evidence.json").write_bytes(msgspec.json.encode(evidence))
    return code


def _reported(options: argparse.Namespace, report: Report) -> int:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    Console().print(report_table(report))
    return 1 if report.broken else 0


def _judged(options: argparse.Namespace, evidence: Evidence) -> Report:
    session_timeout_s = SHAPES[options.engine].session_timeout_s
    return judge(evidence, seed=options.seed, engine=options.engine, session_timeout_s=session_timeout_s)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="faults, most of them kill -9")
    parser.add_argument("--seed", type=int, default=0, help="of the plan: which fault hits whom and when")
    parser.add_argument("--engine", choices=["scripted", "vllm"], default="scripted")
    parser.add_argument("--minutes", type=float, help="time the faults are spread over")
    parser.add_argument("--workers", type=int, default=0, help="rollout workers at rest; default: as suits the engine")
    parser.add_argument("--output", type=Path, default=FOLDER / "latest.json")
    parser.add_argument("--judge", type=Path, help="judge the evidence of a former run again; nothing is run")
    parser.add_argument("--quick", action="store_true", help="short phases before and after: the rates mean little")
    parser.add_argument("--without-journal", action="store_true", help="the control: promises break")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live view")
    return parser.parse_args(arguments)


async def _run(options: argparse.Namespace, folder: Path, marker: str) -> tuple[Report, Evidence]:
    shape = SHAPES[options.engine]
    if options.workers:
        shape = replace(shape, rollout_workers=options.workers, max_rollout_workers=options.workers + 1)
    interval_s = options.minutes * 60 / options.kills if options.minutes else INTERVAL_S
    if options.engine == "vllm":
        interval_s = max(interval_s, 8.0)
    plan = plan_faults(options.seed, options.kills, interval_s, shape)
    duration_s = sum(fault.after_s + LONGEST_ALONE_S * fault.is_alone for fault in plan)
    timing = Timing.of(options.engine, is_quick=options.quick)
    workload = Workload(
        engine=options.engine,
        groups=int(GROUPS_PER_S * (duration_s + timing.calm_s)) + SPARE_GROUPS,
        session_timeout_s=shape.session_timeout_s,
        model=await asyncio.to_thread(_model) if options.engine == "vllm" else "",
        is_journaled=not options.without_journal,
        groups_in_flight=12 if options.engine == "scripted" else 6,
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ROLLSTREAM_")},
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])),
        "ROLLSTREAM_KAFKA__PREFIX": PREFIX,
        "CHAOS_RUN": marker,
        "CHAOS_PIPELINE_DEPTH": str(workload.groups_in_flight),
    }
    with LiveView(plan, is_plain=options.plain or not sys.stderr.isatty()) as view:
        evidence = await Stage(shape, workload, timing, folder, environment, options.seed).play(plan, view)
        view.say("weighing the evidence")
    return _judged(options, evidence), evidence


def _model() -> str:
    from rollstream.cli.tiny_model import ensure_tiny_model

    return str(ensure_tiny_model(progress=lambda _: None))


def _keep_logs(folder: Path, destination: Path) -> None:
    """Logs of the last run lie beside its report."""
    if (folder / "logs").is_dir():
        shutil.rmtree(destination / "logs", ignore_errors=True)
        shutil.copytree(folder / "logs", destination / "logs")


if __name__ == "__main__":
    sys.exit(main())
