from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rollstream.cli.command_line import CommandLine
from rollstream.cli.demo.plan import (
    GROUPS_PER_BATCH,
    PARTITIONS,
    TRAINER,
    DemoOptions,
    default_name,
    demo_processes,
    open_folder,
    point_latest_to,
    producer_settings,
    write_settings,
    write_tasks,
)
from rollstream.cli.settings import load_settings
from rollstream.schemas.errors import SettingsError
from rollstream.transport.settings import KafkaSettings

KAFKA = KafkaSettings(bootstrap="here:9092", prefix="demo-x.", partitions=PARTITIONS)


def options(folder: Path, name: str = "x", **changes: int) -> DemoOptions:
    return DemoOptions(name=name, runs_dir=folder, **changes)


def test_the_settings_file_of_a_run_says_what_the_workers_get(tmp_path: Path) -> None:
    run = options(tmp_path, seed=5)
    open_folder(run)
    path = write_settings(run, KAFKA, tmp_path / "model")
    settings = load_settings(command_line=CommandLine(path))
    assert settings.kafka == KAFKA
    assert settings.rollout_worker.model == str(tmp_path / "model")
    assert settings.rollout_worker.engine.kind == "vllm"
    assert settings.rollout_worker.engine.seed == 5
    assert settings.tool_worker.tools == ("calculator",)


def test_there_are_more_prompts_than_the_trainer_can_take(tmp_path: Path) -> None:
    run = options(tmp_path, steps=3)
    open_folder(run)
    rows = [json.loads(row) for row in write_tasks(run).read_text().splitlines()]
    assert len(rows) > 3 * GROUPS_PER_BATCH
    assert all(row["prompt"] and int(row["answer"]) is not None for row in rows)
    settings = producer_settings(run, run.folder / "tasks.jsonl")
    assert (settings.run_id, settings.group_size, settings.pacing) == ("x", 8, "wait")


def test_other_seeds_have_other_tasks(tmp_path: Path) -> None:
    one, two = options(tmp_path, "one", seed=1), options(tmp_path, "two", seed=2)
    for run in (one, two):
        open_folder(run)
    assert write_tasks(one).read_text() != write_tasks(two).read_text()


def test_a_folder_of_something_else_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="holds no run of the demo"):
        open_folder(options(tmp_path))


def test_a_run_goes_on_under_its_own_options_only(tmp_path: Path) -> None:
    record = open_folder(options(tmp_path, seed=1, steps=3))
    record.steps_done = 2
    record.save(tmp_path / "x")
    assert open_folder(options(tmp_path, seed=1, steps=3)).steps_done == 2
    with pytest.raises(SettingsError, match="begun with --seed 1 --steps 3, not --seed 2 --steps 3"):
        open_folder(options(tmp_path, seed=2, steps=3))


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "ä"])
def test_a_name_that_is_no_folder_and_topic_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="--name"):
        open_folder(options(tmp_path, name))


def test_runs_are_named_by_the_time_they_began() -> None:
    assert default_name(datetime(2026, 1, 31, 14, 25, 1, tzinfo=UTC)) == "20260131-142501"


def test_latest_points_to_the_newest_run_and_spares_what_is_no_link(tmp_path: Path) -> None:
    for name in ("a", "b"):
        open_folder(options(tmp_path, name))
        point_latest_to(tmp_path / name)
        assert (tmp_path / "latest").resolve() == (tmp_path / name).resolve()
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()
    point_latest_to(tmp_path / "a")
    assert not (tmp_path / "latest").is_symlink()
    assert not list(tmp_path.glob(".latest*"))


def test_only_the_trainer_may_finish(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in demo_processes(options(tmp_path), KAFKA, tmp_path, tmp_path / "r.toml")}
    assert [name for name, spec in specs.items() if spec.may_finish] == [TRAINER]
    assert specs[TRAINER].environment["ROLLSTREAM_KAFKA__PREFIX"] == "demo-x."
