"""Every benchmark that needs no vLLM runs at a tiny size and gives figures with all their fields."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
BENCHMARKS = {
    "wire": 2,
    "tool_round_trip": 4,
    "trajectory_stream": 2,
    "event_loop": 2,
    "simulated_clusters": 4,
    "pipeline_scripted": 3,
    "weight_update": 2,
}
"""And how many figures of each at least."""
SANDBOX_BENCHMARKS = {"sandbox": 19, "sandbox_round_trip": 5}
"""Likewise, of those that need bubblewrap."""
FIELDS = {
    "name": str,
    "value": float,
    "unit": str,
    "higher_is_better": bool,
    "met": bool,
    "versus": str,
    "command": str,
    "note": str,
}


@pytest.mark.parametrize(
    "least", [BENCHMARKS, pytest.param(SANDBOX_BENCHMARKS, marks=pytest.mark.sandbox)], ids=["plain", "sandbox"]
)
async def test_every_benchmark_gives_complete_figures(broker: str, tmp_path: Path, least: dict[str, int]) -> None:
    output = tmp_path / "figures.json"
    only = [argument for name in least for argument in ("--only", name)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "--output", str(output), *only,
        cwd=tmp_path, env={**os.environ, "ROLLSTREAM_TEST_BOOTSTRAP": broker},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, printed.decode()
    figures: list[dict[str, Any]] = json.loads(output.read_text())
    for figure in figures:
        assert figure.keys() == {*FIELDS, "bar"}
        assert all(isinstance(figure[name], kind) for name, kind in FIELDS.items()), figure
        assert figure["bar"] is None or isinstance(figure["bar"], int | float)
        assert math.isfinite(figure["value"])
        assert figure["command"].startswith("python benchmarks/")
    assert all(figure["name"] in printed.decode() for figure in figures if len(figure["name"]) < 40)
    assert len(figures) >= sum(least.values())
