from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation import (
    EpisodeFacts,
    Evaluation,
    decode_report,
    encode_report,
    prompt_results,
    summarize_environments,
)
from rollstream.trainers.evaluation.report import EpisodeCounts, PolicyFacts, make_report

MakeEpisode = Callable[..., EpisodeFacts]


@pytest.fixture
def evaluation(episode: MakeEpisode) -> Evaluation:
    prompts = prompt_results(
        [episode(group, member, float(member % 2)) for group in range(3) for member in range(4)],
        ks=(1, 4),
        pass_threshold=1.0,
    )
    return Evaluation(
        name="gsm8k",
        run_ids=["eval-gsm8k"],
        policy=PolicyFacts(asked_for="latest", lineage=3, version=7, uri="s3://b/v7", manifest_sha256="0" * 64),
        episodes=EpisodeCounts(wanted=12, completed=12),
        environments=summarize_environments(prompts),
        prompts=prompts,
        settings={"samples": 4},
    )


def test_a_report_is_read_back_as_it_was_written(evaluation: Evaluation) -> None:
    report = make_report([evaluation], {"rollstream": "1"})
    assert decode_report(encode_report(report), name="x.json") == report
    assert report.evaluations[0].policy.label == "3:7"
    assert json.loads(encode_report(report))["schema_version"] == 1


def test_several_environments_have_means_over_them_and_one_has_none(evaluation: Evaluation) -> None:
    assert make_report([evaluation], {}).overall == {}
    other = msgspec.structs.replace(evaluation, name="again")
    both = make_report([evaluation, other], {}).overall
    assert both["pass@1"].mean == 0.5
    assert both["pass@4"].mean == 1.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "is no report"),
        (b"[]", "is no report"),
        (b'{"format": "other", "schema_version": 1}', "its format is 'other'"),
        (b'{"format": "rollstream-evaluation", "schema_version": 2}', "schema version 2"),
        (b'{"format": "rollstream-evaluation", "schema_version": 1}', "evaluations"),
    ],
)
def test_a_file_that_is_no_report_is_named(body: bytes, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        decode_report(body, name="x.json")
    assert "x.json" in str(refused.value)


def test_fields_that_a_later_program_adds_do_not_hinder(evaluation: Evaluation) -> None:
    written = json.loads(encode_report(make_report([evaluation], {})))
    written["evaluations"][0]["colour"] = "blue"
    assert decode_report(json.dumps(written).encode(), name="x.json").evaluations == [evaluation]
