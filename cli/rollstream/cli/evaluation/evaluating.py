"""Evaluations one after another: once, or for every version that training announces.

Crash: what was sampled is in the log, points that were reached are in the curve; the same call goes on after them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rollstream.cli.evaluation.curve import Curve, is_due
from rollstream.cli.evaluation.flow import StoppedError, evaluate
from rollstream.cli.evaluation.policies import PolicyHistory, check_files, choose_policy, policy_facts, policy_history
from rollstream.cli.evaluation.progress import progress_shown
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.cli.evaluation.view import report_tables
from rollstream.cli.stop_signals import stop_on_signals
from rollstream.cli.version import installed_versions
from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import PolicyFilesError, TransientError
from rollstream.trainers.evaluation import Evaluation, EvaluationReport, against
from rollstream.trainers.evaluation.report import PolicyFacts, make_report
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""A stop is noticed after this long while no version comes."""
RETRY_S = 1.0


class Evaluating:
    """The evaluations of one call; tables go to standard output."""

    def __init__(
        self,
        evaluations: Sequence[EvaluationSettings],
        kafka: KafkaSettings,
        *,
        baseline: EvaluationReport | None = None,
        baseline_name: str = "",
    ) -> None:
        self._evaluations = evaluations
        self._kafka = kafka
        self._baseline = baseline
        self._baseline_name = baseline_name
        self._console = Console()

    async def once(self) -> EvaluationReport | None:
        """Each evaluation with the policy its settings name; None: stopped before the end."""
        with stop_on_signals() as stop:
            policies = {word: await choose_policy(word, self._kafka) for word in {e.policy for e in self._evaluations}}
            try:
                report = await self._report(policies, stop)
            except StoppedError:
                return None
        self._show(report)
        return report

    async def follow(self, curve_path: Path, *, every: int, points: int | None) -> None:
        """Append a point for every version that is due, until ``points`` were added or somebody stops it."""
        curve = await asyncio.to_thread(Curve, curve_path)
        waiting: deque[PolicyVersion] = deque()
        added = 0
        with stop_on_signals() as stop:
            async with policy_history(self._kafka) as history:
                waiting += _from_the_start(await history.to_end(), curve)
                while not stop.is_set() and (points is None or added < points):
                    due = await self._next_due(waiting, history, curve, every)
                    if due is None:
                        continue
                    try:
                        report = await self._report({e.policy: due for e in self._evaluations}, stop)
                    except StoppedError:
                        return
                    await asyncio.to_thread(curve.append, report)
                    added += 1
                    self._show(report)

    async def _next_due(
        self, waiting: deque[PolicyVersion], history: PolicyHistory, curve: Curve, every: int
    ) -> PolicyFacts | None:
        """The next version to evaluate; None: none for now."""
        if not waiting:
            try:
                waiting += await history.next(timeout_s=POLL_S)
            except TransientError as error:
                logger.warning("%s", error)
                await asyncio.sleep(RETRY_S)
        while waiting:
            announced = waiting.popleft()
            if not is_due(announced, curve.last, every=every):
                continue
            policy = policy_facts("followed", announced)
            try:
                await asyncio.to_thread(check_files, policy)
            except PolicyFilesError as error:
                logger.warning("policy %s is passed over, the next one is taken instead: %s", policy.label, error)
                continue
            return policy
        return None

    async def _report(self, policies: dict[str, PolicyFacts], stop: asyncio.Event) -> EvaluationReport:
        found: list[Evaluation] = []
        for settings in self._evaluations:
            policy = policies[settings.policy]
            with progress_shown(f"{settings.name}, policy {policy.label}") as show:
                evaluation = await evaluate(settings, policy, self._kafka, stop=stop, on_progress=show)
            if self._baseline is not None:
                evaluation = against(
                    evaluation,
                    self._baseline,
                    name=self._baseline_name,
                    seed=settings.bootstrap_seed,
                    confidence=settings.confidence,
                )
            found.append(evaluation)
        return make_report(found, installed_versions())

    def _show(self, report: EvaluationReport) -> None:
        for shown in report_tables(report):
            self._console.print(shown)


def _from_the_start(announced: list[PolicyVersion], curve: Curve) -> list[PolicyVersion]:
    """A fresh curve begins with the newest version; one that is continued takes all after its last point."""
    if curve.last is not None:
        return announced
    return [max(announced, key=lambda policy: (policy.lineage, policy.version))] if announced else []
