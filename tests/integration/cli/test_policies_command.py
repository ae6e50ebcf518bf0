"""`rollstream policies list | prune` against real files and a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rollstream.cli.policies import policies_app
from rollstream.trainers import TrajectoryStream
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker


@pytest.fixture
def run(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(
        policies_app, [*arguments, "--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix]
    )


async def test_stored_policies_are_listed_with_who_needs_them_and_the_others_are_removed(
    kafka: KafkaSettings, tmp_path: Path, run: Callable[..., Result]
) -> None:
    await asyncio.to_thread(check_commands, kafka, tmp_path, run)


def check_commands(kafka: KafkaSettings, tmp_path: Path, run: Callable[..., Result]) -> None:
    weights, store = tmp_path / "weights", tmp_path / "store"
    weights.mkdir()
    assert "no policy is stored" in run("list", str(store)).output
    with TrajectoryStream(kafka, policy_store=str(store)) as stream:
        for version in range(1, 6):
            (weights / "model.safetensors").write_bytes(b"x" * 1024 * version)
            stream.publish_policy(version, weights)
        lineage = stream.stats().lineage

    listed = json.loads(run("list", str(store), "--json").output)
    table = run("list", str(store)).output
    pruned = run("prune", str(store), "--keep", "1", "--hold", "2")

    assert [(p["version"], p["size_bytes"], p["needed"]) for p in listed] == [
        (5, 5120, "announced"), (4, 4096, ""), (3, 3072, ""), (2, 2048, ""), (1, 1024, ""),
    ]  # fmt: skip
    assert f"{lineage}:5" in table
    assert "announced" in table
    assert "3 removed, 8 KiB given back" in pruned.output
    assert sorted(path.name for path in store.iterdir()) == [f"{lineage}-2", f"{lineage}-5"]


def test_a_place_that_nothing_can_open_is_an_error_that_says_so(run: Callable[..., Result]) -> None:
    result = run("list", "nonsense://x/y")
    assert "policy URL 'nonsense://x/y' cannot be opened" in str(result.exception)
