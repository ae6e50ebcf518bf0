"""A training cluster in virtual time: how close asynchronous training comes to the best that is possible.

The decisions are the product's own: the trainer's `BatchFormer` forms batches and sets the limit, `decide_pace` emits
by it, policy versions follow the trainer. Simulated are the clock, the episodes' durations, and who is busy. Messages
take no time. One batch takes the trainer as long as all workers together, on average, so that both matter.

The ideal: whoever trains the same batches in the same order, on N slots with a step of T seconds, needs at least

    max over k of  (episode seconds of batches 1 … k) / N  +  (n - k + 1) * T

for n batches: batch k is not complete before its episodes, and those of all batches before it, have been generated, by
N slots at most; and n - k + 1 steps come after that, one at a time. No schedule, depth or staleness can beat it: it
lets episodes be cut into pieces and slots never idle.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from random import Random

import numpy as np

from rollstream.producers.emit_claims import CLAIM_GROUPS, Claim
from rollstream.producers.pacing import decide_pace
from rollstream.schemas import ids
from rollstream.schemas.control import ProducerProgress, TrainerProgress
from rollstream.schemas.trajectories import Sample, Trajectory, VersionSpan
from rollstream.trainers.batch_forming import BatchFormer
from rollstream.trainers.settings import TrainerSettings
from rollstream.trainers.stream_state import PublishedPolicy

RUN = "cluster"
GROUP_SIZE = 8
WAVES = 4
"""Episodes of a batch for each slot: 4 as in the published comparisons, which are limited by slots."""
MEAN_S = 60.0

Durations = Callable[[Random], float]


def _lognormal(sigma: float) -> Durations:
    return lambda random: MEAN_S * exp(random.gauss(-sigma * sigma / 2, sigma))


def _pareto(alpha: float, longest: float) -> Durations:
    """Cut at ``longest`` times the mean, as episodes are cut at their limits; the mean is that of the uncut one."""
    scale = MEAN_S * (alpha - 1) / alpha
    return lambda random: min(longest * MEAN_S, scale * random.paretovariate(alpha))


def _mixture(long_share: float, factor: float) -> Durations:
    """A share of the episodes takes ``factor`` times as long as the others."""
    short = MEAN_S / (1 - long_share + long_share * factor)
    return lambda random: short * (factor if random.random() < long_share else 1.0) * random.uniform(0.9, 1.1)


DURATIONS: dict[str, Durations] = {
    "lognormal 0.5": _lognormal(0.5),
    "10 % ten times longer": _mixture(0.1, 10.0),
    "lognormal 1.0": _lognormal(1.0),
    "pareto 1.5": _pareto(1.5, 20.0),
}
"""All with a mean of about a minute. The 99.9th percentile is about 5, 11, 22 and 38 times the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What is simulated. A step takes as long as all workers need for a batch on average, times ``step_ratio``."""

    workers: int
    batches: int
    durations: str = "lognormal 0.5"
    pipeline_depth: int = 1
    max_staleness: int | None = 4
    slots_per_worker: int = 8
    waves: int = WAVES
    step_ratio: float = 1.0
    is_placed: bool = False
    """Groups go to the worker of their partition, as on Kafka; else to whichever is free."""
    seed: int = 0

    @property
    def slots(self) -> int:
        """Episodes that can run at once."""
        return self.workers * self.slots_per_worker

    @property
    def groups_per_batch(self) -> int:
        """Groups that a step trains on."""
        return max(1, self.slots * self.waves // GROUP_SIZE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it. Shares are of the whole time.

    Attributes:
        seconds: from the first task to the end of the last step.
        ideal_s: what any schedule would need for the same batches.
        trainer_idle: the trainer had no batch.
        slots_idle: of all slots.
        held_s: time a full batch was held back for slow groups.
        dropped: share of groups that were dropped as stale.
    """

    seconds: float
    ideal_s: float
    trainer_idle: float
    slots_idle: float
    held_s: float
    dropped: float
    mean_staleness: float
    max_staleness: int

    @property
    def of_ideal(self) -> float:
        """1: as fast as possible."""
        return self.ideal_s / self.seconds


@dataclass(order=True, slots=True)
class _Event:
    at_s: float
    number: int
    group: int
    """-1: the trainer's step ends."""
    member: int
    worker: int
    version: int
    duration_s: float


@dataclass
class _Trainer:
    step_s: float
    batches_left: int
    busy_s: float = 0.0
    waits: bool = True
    work_s: list[float] = field(default_factory=list[float])
    """Episode seconds of each batch."""
    held_since_s: float | None = None
    held_s: float = 0.0


class _Simulation:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._former = BatchFormer(
            TrainerSettings(
                groups_per_batch=cluster.groups_per_batch,
                pipeline_depth=cluster.pipeline_depth,
                max_staleness=cluster.max_staleness,
                group_deadline_s=1e12,
                max_batches=cluster.batches,
            ),
            "trajectories",
        )
        self._former.open_lineage(1, is_restored=False)
        self._draw = DURATIONS[cluster.durations]
        self._now_s = 0.0
        self._events: list[_Event] = []
        self._numbers = 0
        self._emitted = 0
        self._claim: Claim | None = None
        self._ready = 0
        queues = cluster.workers if cluster.is_placed else 1
        self._queues: list[deque[tuple[int, int, float]]] = [deque() for _ in range(queues)]
        self._free = [cluster.slots // queues] * queues
        self._busy_s = 0.0
        self._work_s: dict[int, float] = {}
        self._offset = 0
        episodes = cluster.groups_per_batch * GROUP_SIZE
        step_s = cluster.step_ratio * episodes * MEAN_S / cluster.slots
        self._trainer = _Trainer(step_s, cluster.batches)

    def run(self) -> Outcome:
        self._emit()
        while self._trainer.batches_left:
            event = heapq.heappop(self._events)
            self._now_s = event.at_s
            if event.group < 0:
                self._end_step()
            else:
                self._end_episode(event)
        return self._outcome()

    def _emit(self) -> None:
        """The producer, as far as it may go; its tasks are begun where there is room."""
        stats = self._former.stats()
        limit = TrainerProgress(
            trainer_id="trainer", lineage=1, version=self._former.version, groups_consumed=stats.groups_consumed,
            groups_dropped=0, emit_limit=self._former.emit_limit,
        )  # fmt: skip
        before = self._emitted
        while True:
            pace = decide_pace(self._emitted, pacing="wait", trainer=limit, pause=None, claim=self._claim)
            if pace.needs_claim and pace.groups_allowed is not None and pace.groups_allowed > self._emitted:
                self._claim = Claim(RUN, self._emitted, self._emitted + CLAIM_GROUPS, 0)
            elif pace.state == "emitting":
                self._emit_group(self._emitted)
                self._emitted += 1
            else:
                break
        if self._emitted > before:
            progress = ProducerProgress(run_id=RUN, groups_emitted=self._emitted, group_size=GROUP_SIZE)
            self._former.note_progress(progress, self._now_s)

    def _emit_group(self, group: int) -> None:
        random = Random(f"{self._cluster.seed}/{self._cluster.durations}/{group}")
        durations = [self._draw(random) for _ in range(GROUP_SIZE)]
        self._work_s[group] = sum(durations)
        queue = ids.group_partition(ids.group_id(RUN, group), len(self._queues)) if len(self._queues) > 1 else 0
        self._queues[queue].extend((group, member, duration) for member, duration in enumerate(durations))
        self._begin_episodes(queue)

    def _begin_episodes(self, queue: int) -> None:
        waiting = self._queues[queue]
        while waiting and self._free[queue]:
            self._free[queue] -= 1
            group, member, duration_s = waiting.popleft()
            self._schedule(duration_s, group, member, queue)

    def _schedule(self, in_s: float, group: int, member: int = 0, worker: int = 0) -> None:
        self._numbers += 1
        version = self._former.version
        heapq.heappush(self._events, _Event(self._now_s + in_s, self._numbers, group, member, worker, version, in_s))

    def _end_episode(self, event: _Event) -> None:
        self._busy_s += event.duration_s
        self._free[event.worker] += 1
        self._begin_episodes(event.worker)
        self._offset += 1
        was_settled = self._former.is_settled
        self._former.add(_trajectory(event), 0, self._offset, self._now_s)
        if self._trainer.waits and not (was_settled and self._former.is_settled):
            self._ask()

    def _ask(self) -> None:
        """The trainer asks for its next batch."""
        batch = self._former.next_batch()
        trainer = self._trainer
        if batch is None:
            if self._former.held_for and trainer.held_since_s is None:
                trainer.held_since_s = self._now_s
            self._emit()
            return
        if trainer.held_since_s is not None:
            trainer.held_s += self._now_s - trainer.held_since_s
            trainer.held_since_s = None
        trainer.waits = False
        trainer.work_s.append(sum(self._work_s.pop(group.group_index) for group in batch.groups))
        self._schedule(trainer.step_s, -1)
        self._emit()

    def _end_step(self) -> None:
        trainer = self._trainer
        trainer.busy_s += trainer.step_s
        trainer.batches_left -= 1
        trainer.waits = True
        version = self._former.version + 1
        self._former.published(version, PublishedPolicy(uri=f"/policies/{version}", manifest_sha256=""))
        self._emit()
        if trainer.batches_left:
            self._ask()

    def _outcome(self) -> Outcome:
        cluster, trainer, stats = self._cluster, self._trainer, self._former.stats()
        running_s = sum(self._now_s - (event.at_s - event.duration_s) for event in self._events if event.group >= 0)
        dropped = stats.drops.get("stale", 0)
        return Outcome(
            seconds=self._now_s,
            ideal_s=ideal_seconds(trainer.work_s, slots=cluster.slots, step_s=trainer.step_s),
            trainer_idle=1 - trainer.busy_s / self._now_s,
            slots_idle=max(0.0, 1 - (self._busy_s + running_s) / (cluster.slots * self._now_s)),
            held_s=trainer.held_s,
            dropped=dropped / max(1, dropped + stats.groups_consumed),
            mean_staleness=stats.mean_staleness,
            max_staleness=stats.max_staleness,
        )


def simulate(cluster: Cluster) -> Outcome:
    """Train on ``cluster.batches`` batches. The same cluster gives the same outcome."""
    return _Simulation(cluster).run()


def ideal_seconds(work_s: Sequence[float], *, slots: int, step_s: float) -> float:
    """The least time in which batches with so many episode seconds each can be generated and trained on, in order."""
    done = np.cumsum(np.asarray(work_s)) / slots
    steps_left = np.arange(len(work_s), 0, -1)
    return float(np.max(done + steps_left * step_s))


_ID, _MASK, _LOGPROB = np.ones(1, np.int32), np.ones(1, np.uint8), np.zeros(1, np.float32)


def _trajectory(event: _Event) -> Trajectory:
    """One token, drawn by the policy that was the newest when the episode began: an episode is as old as its first."""
    sample = Sample(
        prompt_ids=_ID, response_ids=_ID, response_mask=_MASK, response_logprobs=_LOGPROB,
        version_spans=[VersionSpan(0, 1, event.version, 1)], turns=[],
    )  # fmt: skip
    return Trajectory(
        run_id=RUN, trajectory_id="", group_id="", group_index=event.group, group_size=GROUP_SIZE,
        member_index=event.member, status="completed", stop_reason="stop", samples=[sample], reward=0.0, lineage=1,
        policy_version_min=event.version, policy_version_max=event.version,
    )  # fmt: skip
