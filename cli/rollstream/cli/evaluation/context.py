"""What an evaluation works with: rollouts under the pinned policy, each episode accounted for once."""

from __future__ import annotations

import asyncio
import inspect
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from rollstream.cli.evaluation.functions import load_function
from rollstream.cli.evaluation.policies import policy_pin
from rollstream.cli.evaluation.rollouts import OnProgress, RolloutOutcome, roll_out
from rollstream.cli.evaluation.settings import NAME, EvaluationSettings
from rollstream.cli.produce import with_tool_specs
from rollstream.producers.run_plan import open_plan
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.errors import RollstreamError, SettingsError
from rollstream.schemas.trajectories import Trajectory
from rollstream.trainers.evaluation import EpisodeFacts, episode_facts
from rollstream.trainers.evaluation.report import PolicyFacts
from rollstream.transport.settings import KafkaSettings

SCORE_DEADLINE_S = 600.0
"""For one trajectory. Judges that are slow or fail now and then are the business of scorers."""


@dataclass(frozen=True, slots=True)
class _PlannedRun:
    settings: ProducerSettings
    prompts: int
    data_source: str
    data_digest: str


@dataclass(slots=True)
class _Rollout:
    run_id: str
    episodes: list[EpisodeFacts] = field(default_factory=list[EpisodeFacts])
    outcome: RolloutOutcome | None = None


class EvaluationContext:
    """Given to an own evaluator: ``async def evaluate(context) -> dict[str, float | list[float]]``.

    A list is one value per prompt and gets an error and an interval. Everything that is rolled out here is in the
    report by itself, as for an evaluation without an evaluator.

    Attributes:
        settings: of this evaluation.
        policy: the only one that may draw tokens.
        data_digests: per environment, of the data.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        policy: PolicyFacts,
        kafka: KafkaSettings,
        *,
        stop: asyncio.Event,
        on_progress: OnProgress,
    ) -> None:
        self.settings = settings
        self.policy = policy
        self.data_digests: dict[str, str] = {}
        self._rollouts: dict[str, _Rollout] = {}
        """By label; empty: of the evaluation's own data."""
        self._kafka = kafka
        self._stop = stop
        self._on_progress = on_progress
        self._score = load_function(settings.score, kind="score") if settings.score is not None else None
        self._deadline_s = asyncio.get_running_loop().time() + settings.timeout_s

    @property
    def episodes(self) -> list[EpisodeFacts]:
        """Of all rollouts so far, each once."""
        return [episode for rollout in self._rollouts.values() for episode in rollout.episodes]

    @property
    def outcomes(self) -> list[RolloutOutcome]:
        """Of all rollouts so far; of one that was called again, the last."""
        return [rollout.outcome for rollout in self._rollouts.values() if rollout.outcome is not None]

    @property
    def left_s(self) -> float:
        """Until the time-out, in seconds; at least 0."""
        return max(0.0, self._deadline_s - asyncio.get_running_loop().time())

    @property
    def is_stopped(self) -> bool:
        """Somebody asked to stop, and episodes are missing for it."""
        return any(outcome.is_stopped for outcome in self.outcomes)

    async def rollout_data(self, *, samples: int | None = None, **options: Any) -> list[list[Trajectory]]:
        """Roll out the evaluation's own data; see `rollout`.

        Without an evaluator trajectories are not kept, and the lists are empty.
        """
        source = self.settings.data
        if not source:
            raise SettingsError(f"evaluation {self.settings.name!r} has no data of its own: give --data")
        return await self._rolled_out(
            source, options, label="", keeps=self.settings.evaluator is not None, samples=samples
        )

    async def rollout(
        self, rows: Sequence[Mapping[str, Any]], *, label: str = "rows", samples: int | None = None, **options: Any
    ) -> list[list[Trajectory]]:
        """Roll out rows and wait for their trajectories.

        The same rows under the same label and options are the same run: called again after a crash, it goes on.

        Args:
            rows: as they would stand in a JSONL file, at least one.
            label: tells rollouts apart, so other rows need another one; also their environment in the report.
            samples: episodes per row; default: the evaluation's.
            options: keys of ``[producer]`` that go before those of the evaluation's ``tasks``.

        Returns:
            Per row its trajectories in order of their members. Those that are missing at the time-out or have tokens of
            another policy are left out, and counted in the report.

        Raises:
            SettingsError: a row or an option is wrong, or the label is that of other rows or options.
        """
        if not rows:
            raise SettingsError("a rollout needs at least one row")
        if not NAME.fullmatch(label):
            raise SettingsError(f"the label {label!r} of a rollout must be 1 to 60 letters, digits, dots or dashes")
        with tempfile.TemporaryDirectory(prefix="rollstream-eval-") as folder:
            path = Path(folder) / f"{label}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            options = {"data_source": label, **options, "on_bad_row": "stop"}
            return await self._rolled_out(str(path), options, label=label, keeps=True, samples=samples)

    async def _rolled_out(
        self, source: str, options: Mapping[str, Any], *, label: str, keeps: bool, samples: int | None = None
    ) -> list[list[Trajectory]]:
        run = await asyncio.to_thread(self._planned, source, options, label, samples)
        rollout = self._begun(label, run.settings.run_id)
        self.data_digests[run.data_source] = run.data_digest
        kept: dict[int, dict[int, Trajectory]] = defaultdict(dict)

        async def see(trajectory: Trajectory) -> None:
            facts = await self._facts(trajectory)
            rollout.episodes.append(facts)
            if keeps and not facts.is_foreign:
                kept[trajectory.group_index][trajectory.member_index] = trajectory

        rollout.outcome = await roll_out(
            run.settings,
            self._kafka,
            prompts=run.prompts,
            topic=self.settings.topic,
            timeout_s=self.left_s,
            stop=self._stop,
            see=see,
            on_progress=self._on_progress,
        )
        if not keeps:
            return []
        return [[members[m] for m in sorted(members)] for members in (kept[g] for g in range(run.prompts))]

    def _begun(self, label: str, run_id: str) -> _Rollout:
        """An account for what is rolled out now; it replaces that of the same run.

        Raises:
            SettingsError: another run goes by the label: their prompts would be taken for each other's.
        """
        known = self._rollouts.get(label)
        if known is not None and known.run_id != run_id:
            named = f"label {label!r}" if label else "rollout_data()"
            raise SettingsError(
                f"{named} has rolled out other rows, or the same under other options, before: give each rollout of an "
                "evaluator a label of its own"
            )
        self._rollouts[label] = _Rollout(run_id)
        return self._rollouts[label]

    def _planned(self, source: str, options: Mapping[str, Any], label: str, samples: int | None) -> _PlannedRun:
        """The run's settings; its id is a function of everything that decides its tasks."""
        pin = policy_pin(self.policy)
        try:
            settings = self.settings.producer(
                source, run_id="planned", samples=samples, policy=pin, **{"is_paced": False, **options}
            )
        except ValueError as error:
            raise SettingsError(f"options of a rollout are wrong: {error}") from error
        settings = with_tool_specs(settings, toolset=self.settings.toolset)
        plan = open_plan(settings)
        try:
            digest = blake2b(
                json.dumps([plan.fingerprints(), self.settings.repeat, pin.manifest_sha256], sort_keys=True).encode(),
                digest_size=6,
            ).hexdigest()
            names = [self.settings.name, *([label] if label else []), self.policy.label, digest]
            run_id = "/".join(["eval", *names])
            return _PlannedRun(
                settings.model_copy(update={"run_id": run_id}),
                plan.prompts_total,
                plan.data_source,
                plan.source.fingerprint,
            )
        finally:
            plan.source.close()

    async def _facts(self, trajectory: Trajectory) -> EpisodeFacts:
        scores = None
        if self._score is not None and trajectory.status in ("completed", "truncated"):
            try:
                async with asyncio.timeout(SCORE_DEADLINE_S):
                    found = await asyncio.to_thread(self._score, trajectory)
                    scores = await found if inspect.isawaitable(found) else found
            except RollstreamError:
                raise
            except Exception as error:  # a foreign function may raise anything
                raise SettingsError(
                    f"score {self.settings.score!r} failed on trajectory {trajectory.trajectory_id!r} "
                    f"({trajectory.data_index}): {type(error).__name__}: {error}"
                ) from error
        return episode_facts(trajectory, lineage=self.policy.lineage, version=self.policy.version, scores=scores)
