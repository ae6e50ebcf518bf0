"""Settings of a rollout worker."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from rollstream.rollout_workers.engine_settings import EngineSettings, VllmSettings


def default_worker_id() -> str:
    """Host and process: unique among living workers."""
    return f"rollout-{socket.gethostname()}-{os.getpid()}"


class RolloutWorkerSettings(BaseModel):
    """What one rollout worker process needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str = ""
    """Folder of the model and its tokenizer; for a remote engine, of the tokenizer."""
    engine: EngineSettings = Field(default_factory=VllmSettings)
    """What generates: `vllm`, `vllm-server` or `scripted`."""
    worker_id: str = Field(default_factory=default_worker_id)
    """Name in logs, status and trajectories."""
    instance_id: str | None = None
    """Stable name of this worker across restarts: a restart within the session time-out moves no partitions."""
    max_running_episodes: int = Field(default=64, ge=1)
    """Episodes in flight at once."""
    infra_budget: int = Field(default=5, ge=1)
    """Infrastructure failures after which a task ends as `failed`."""
    data_budget: int = Field(default=2, ge=1)
    """Failures of the agent or the data after which a task ends as `failed`."""
    crash_budget: int = Field(default=5, ge=2)
    """Workers that may begin a task one after another and never be heard of again before it ends as `failed`."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long running turns may finish after the first SIGTERM; their episodes go on elsewhere."""
    journal: bool = True
    """Keep every turn in the journal. Off: an episode whose worker dies begins again from its prompt."""
    accepts_data_loss: bool = False
    """Start although retention has deleted parts of the journal; the tasks concerned run again."""
    generation_log: Path | None = None
    """Append one JSON line per generation begun to this file; workers may share it."""
    agents: tuple[str, ...] = ()
    """Modules that register agents, imported at start."""
    policy_cache: Path | None = None
    """Where policies from remote storage are kept; default: the user's cache folder."""
    follow_policy: bool = True
    """Load the policy versions a trainer publishes."""
    pin_hold_s: float = Field(default=1200.0, gt=0)
    """How long episodes pinned to a policy may keep newer weights, and one another, waiting; those that still run then
    begin anew. Adapters need no waiting."""
    metrics_port: int | None = None
    """Serve Prometheus metrics here."""
