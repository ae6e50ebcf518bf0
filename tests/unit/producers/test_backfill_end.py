from __future__ import annotations

import pytest

from rollstream.producers.backfill import has_closed_all
from rollstream.schemas.control import ProducerProgress, TrainerProgress


def run(run_id: str, groups: int, *, is_finished: bool = True, is_train: bool = True) -> ProducerProgress:
    return ProducerProgress(
        run_id=run_id, groups_emitted=groups, group_size=8, is_finished=is_finished, is_train=is_train
    )


@pytest.mark.parametrize(
    ("runs", "is_over"),
    [
        ([run("a", 10)], True),
        ([run("a", 7), run("b", 3)], True),
        ([run("a", 10), run("eval", 99, is_train=False)], True),
        ([run("a", 11)], False),
        ([run("a", 5), run("b", 5, is_finished=False)], False),
    ],
)
def test_nothing_is_wanted_any_more_when_the_trainer_has_closed_every_training_group(
    runs: list[ProducerProgress], is_over: bool
) -> None:
    trainer = TrainerProgress(
        trainer_id="t", lineage=0, version=0, groups_consumed=8, groups_dropped=2, emit_limit=None
    )
    assert has_closed_all(trainer, runs) is is_over
    assert not has_closed_all(None, runs)
