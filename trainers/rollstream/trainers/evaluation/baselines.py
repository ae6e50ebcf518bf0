"""An evaluation beside an earlier one of the same name. Pure."""

from __future__ import annotations

import msgspec

from rollstream.trainers.evaluation.comparison import compare_evaluations
from rollstream.trainers.evaluation.report import Baseline, Evaluation, EvaluationReport
from rollstream.trainers.evaluation.summaries import CONFIDENCE


def against(
    evaluation: Evaluation, baseline: EvaluationReport, *, name: str, seed: int = 0, confidence: float = CONFIDENCE
) -> Evaluation:
    """The same with its differences to the baseline's evaluation of its name; unchanged where there is none.

    Prompts are paired where the data of an environment has the same digest.

    Args:
        evaluation: the new one.
        baseline: the report with the old one.
        name: of the baseline's file.
        seed: of the bootstrap.
        confidence: of the intervals.
    """
    old = next((e for e in baseline.evaluations if e.name == evaluation.name), None)
    if old is None:
        return evaluation
    differences = {
        environment: compare_evaluations(
            [p for p in evaluation.prompts if p.environment == environment],
            [p for p in old.prompts if p.environment == environment],
            has_same_data=environment in old.data_digests
            and evaluation.data_digests.get(environment) == old.data_digests[environment],
            seed=seed,
            confidence=confidence,
        )
        for environment in evaluation.environments
        if environment in old.environments
    }
    return msgspec.structs.replace(
        evaluation, baseline=Baseline(report=name, policy=old.policy.label, differences=differences)
    )
