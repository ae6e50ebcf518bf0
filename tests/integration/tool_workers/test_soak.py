"""The soak in small: hostile and honest calls leave nothing behind, and a planted leak is found."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

SOAK = Path(__file__).parents[3] / "benchmarks" / "soak.py"
RUN_TIMEOUT_S = 240.0

pytestmark = pytest.mark.sandbox


async def _soak(*arguments: str) -> tuple[int | None, dict[str, Any]]:
    """Exit code and result of a run in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SOAK), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            printed, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert printed, complaint.decode()
    return process.returncode, json.loads(printed.splitlines()[-1])


@pytest.mark.slow
async def test_three_hundred_hostile_and_honest_calls_leave_nothing_behind() -> None:
    code, result = await _soak("--calls", "300")
    assert result["leaked"] == {}, result
    assert result["wrong"] == []
    assert result["calls"] == 300
    assert result["honest_calls"] > 100
    assert sum(result["hostile"].values()) > 30
    assert code == 0


async def test_a_sandbox_that_was_left_open_is_reported_as_a_leak() -> None:
    code, result = await _soak("--calls", "16", "--plant-leak")
    assert code == 1
    assert result["leaked"]["processes"] >= 2
    assert result["leaked"]["descriptors"] >= 1
