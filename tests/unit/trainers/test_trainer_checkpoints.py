from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.adapters.checkpoints import CheckpointWatch, Look, checkpoint_path, looks_at, step_of
from rollstream.trainers.adapters.progress_file import ProgressFile


def look(weights_bytes: int = 10, *names: str) -> Look:
    return frozenset((name, weights_bytes, 0) for name in (names or ("config.json", "model.safetensors")))


def test_names_of_checkpoints_say_their_step() -> None:
    assert [step_of(name) for name in ("step_7", "global_step_7", "adapter_step_7", "checkpoint-7")] == [7] * 4
    assert [step_of(name) for name in ("final_adapter", "final_model", "step_", "step_7.part")] == [None] * 4


def test_a_checkpoint_that_still_grows_is_not_published() -> None:
    watch = CheckpointWatch(settle_s=5)
    assert watch.due({1: look(10)}, 0, 0.0) is None
    assert watch.due({1: look(20)}, 0, 6.0) is None
    assert watch.due({1: look(20)}, 0, 10.9) is None
    assert watch.due({1: look(20)}, 0, 11.0) == 1


def test_a_checkpoint_without_weights_or_config_is_none() -> None:
    watch = CheckpointWatch(settle_s=0)
    assert (
        watch.due({1: look(1, "config.json"), 2: look(1, "model.safetensors"), 3: look(1, "optimizer.pt")}, 0, 9)
        is None
    )


@given(steps=st.sets(st.integers(0, 50)), version=st.integers(0, 50))
def test_only_the_newest_checkpoint_after_the_published_version_is_due(steps: set[int], version: int) -> None:
    due = CheckpointWatch(settle_s=0).due({step: look() for step in steps}, version, 0.0)
    assert due == max((step for step in steps if step > version), default=None)


def test_checkpoints_are_found_where_the_trainer_saves_them(tmp_path: Path) -> None:
    assert looks_at(tmp_path / "nowhere") == {}
    directory = tmp_path / "step_12"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "manifest.json").write_text("ours")
    (tmp_path / "step_13").write_text("a file")
    assert {step: [name for name, _, _ in seen] for step, seen in looks_at(tmp_path).items()} == {12: ["config.json"]}
    assert checkpoint_path(tmp_path, 12) == directory
    assert checkpoint_path(tmp_path, 13) is None


def test_of_two_directories_of_one_step_the_one_looked_at_is_published(tmp_path: Path) -> None:
    for name, file in (("adapter_step_5", "adapter_config.json"), ("step_5", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    [(step, seen)] = looks_at(tmp_path).items()
    assert [name for name, _, _ in seen] == ["config.json"]
    assert checkpoint_path(tmp_path, step) == tmp_path / "step_5"


def test_a_checkpoint_that_the_trainer_removes_while_it_is_looked_at_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        (tmp_path / f"step_{step}" / "optimizer").mkdir(parents=True)
        (tmp_path / f"step_{step}" / "config.json").write_text("{}")
    stat = Path.stat

    def stat_too_late(self: Path, **options: bool) -> os.stat_result:
        if self.parent == tmp_path / "step_1":
            shutil.rmtree(self.parent, ignore_errors=True)
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", stat_too_late)
    assert {step: {name for name, _, _ in seen} for step, seen in looks_at(tmp_path).items()} == {
        1: set(),
        2: {"config.json"},
    }


def test_the_state_file_holds_what_was_saved_last_or_nothing(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path / "deep" / "state.json")
    assert progress.load() is None
    progress.save({"a": 1})
    progress.save({"a": [2, "x"]})
    assert progress.load() == {"a": [2, "x"]}
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["state.json"]


@pytest.mark.parametrize("content", ["{torn", "[1]"])
def test_a_state_file_that_is_something_else_stops_the_start(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match="cannot be used"):
        ProgressFile(path).load()
