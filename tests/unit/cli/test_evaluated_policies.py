from __future__ import annotations

from pathlib import Path

import pytest

from rollstream.cli.evaluation.policies import announced_policy, check_files, policy_facts, policy_pin, unknown_policy
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import PolicyFilesError
from rollstream.transport.policy_files import seal_policy
from rollstream.transport.policy_manifest import PolicyIdentity

HISTORY = [
    PolicyVersion(lineage=lineage, version=version, uri=f"s3://b/{lineage}/{version}", manifest_sha256="0" * 64)
    for lineage, version in [(2, 8), (2, 9), (5, 3), (2, 10)]
]


def test_the_latest_is_that_of_the_newest_trainer_and_before_any_the_model_as_it_came() -> None:
    latest = announced_policy("latest", HISTORY)
    assert latest is not None
    assert (latest.label, latest.uri) == ("5:3", "s3://b/5/3")
    base = announced_policy("latest", [])
    assert base is not None
    assert (base.label, policy_pin(base).uri) == ("base", "")


def test_the_first_version_of_the_first_trainer_is_the_model_as_it_came() -> None:
    first = PolicyVersion(lineage=0, version=0, uri="s3://b/0/0", manifest_sha256="0" * 64)
    policy = announced_policy("latest", [first])
    assert policy is not None
    assert (policy.label, policy_pin(policy).uri) == ("base", "")


@pytest.mark.parametrize(("asked_for", "found"), [("2:9", "2:9"), ("02:08", "2:8"), ("2:7", None), ("5:9", None)])
def test_a_version_is_found_however_old_and_an_unknown_one_is_not_guessed(asked_for: str, found: str | None) -> None:
    policy = announced_policy(asked_for, HISTORY)
    assert (policy.label if policy else None) == found


def test_the_message_about_an_unknown_policy_names_those_that_are_known() -> None:
    assert "['5:3', '2:10', '2:9', '2:8']" in unknown_policy("7:7", HISTORY)
    assert "none has been announced yet" in unknown_policy("7:7", [])


def test_files_that_are_gone_or_written_again_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "v7"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    digest = seal_policy(directory, PolicyIdentity(3, 7))
    announced = PolicyVersion(lineage=3, version=7, uri=str(directory), manifest_sha256=digest)
    policy = policy_facts("3:7", announced)
    check_files(policy)
    (directory / "model.safetensors").write_bytes(b"others")
    seal_policy(directory, PolicyIdentity(3, 7))
    with pytest.raises(PolicyFilesError, match="not the one that was announced"):
        check_files(policy)
    (directory / "manifest.json").unlink()
    with pytest.raises(PolicyFilesError, match=r"has no manifest\.json"):
        check_files(policy)
