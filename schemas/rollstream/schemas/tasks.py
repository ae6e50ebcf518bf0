"""`tasks`: one requested rollout, self-contained, so that any worker runs it and replay needs nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from rollstream.schemas.messages import Message


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of the initial conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool the agent may call, as the model sees it and as the rollout worker routes it."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON Schema of the arguments object."""
    toolset: str = "default"
    """Suffix of the topic that serves it: ``tool-calls.<toolset>``."""
    is_stateful: bool = False
    """Whether calls of one episode share a tool session. Stateless calls are spread over all tool workers."""
    is_idempotent: bool = True
    """Whether running a call twice is harmless. If not, an unknown outcome is reported, never guessed."""


class WorkspaceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Files that the sandbox of a task's tool session holds from the start.

    History, remotes and reflogs of version control are gone before anybody sees them: one commit is left.
    """

    uri: str
    """Of an archive, as fsspec reads it; below one of the tool worker's ``workspace_roots``."""
    sha256: str
    """Of its content, in hexadecimal digits."""
    kind: Literal["archive", "git-bundle"] = "archive"
    """A tar or zip, or a git bundle."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """The distribution tokens are drawn from. Part of the trajectory: logprobs mean nothing without it."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    """-1: all tokens."""
    min_p: float = 0.0
    max_tokens: int = 512
    """Sampled tokens per turn."""


class EpisodeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Where an episode is cut. A cut episode ends as ``truncated``."""

    max_turns: int = 8
    max_response_tokens: int = 4096
    """Sampled plus observed tokens after the prompt."""
    wall_clock_s: float = 600.0
    max_tool_calls_per_turn: int = 8
    """Calls beyond it are answered with an error observation and not run."""
    max_malformed_turns: int = 3
    tool_timeout_s: float = 60.0
    """Time one tool call may take in the tool, queueing excluded."""


class RewardSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which function scores the episode, and what it needs. Never shown to the model or to tools."""

    name: str
    """``exact``, ``numeric``, ``regex`` or ``module:function``, scored by the rollout worker; ``unit_tests``,
    ``call_cases``, ``program_cases``, ``command_tests`` or ``grader:<name>``, graded by a tool worker."""
    answer: str | None = None
    arguments: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])


class PolicyPin(msgspec.Struct, frozen=True, kw_only=True):
    """The only weights that may draw an episode's tokens. (0, 0) without a URI: the model as the engine started."""

    lineage: int
    version: int
    uri: str = ""
    """As in `PolicyVersion`; empty for (0, 0) alone."""
    manifest_sha256: str = ""
    kind: Literal["full", "lora"] = "full"
    """As in `PolicyVersion`."""


class RolloutTask(Message, frozen=True, kw_only=True):
    """One member of a group. Key: ``group_id``; partition and ids are pure functions of (run, group, member)."""

    topic: ClassVar[str] = "tasks"
    header_fields: ClassVar[tuple[str, ...]] = ("trajectory_id",)

    run_id: str
    group_id: str
    group_index: int
    """Dense: 0, 1, 2, … in order of emission within the run."""
    group_size: int
    member_index: int
    """In ``[0, group_size)``."""
    trajectory_id: str
    """Also the id of the task: one task, one trajectory."""
    messages: list[ChatMessage]
    tools: list[ToolSpec] = msgspec.field(default_factory=list[ToolSpec])
    agent: str = "react"
    """A registered agent or ``module:function``."""
    sampling: SamplingParams = SamplingParams()
    limits: EpisodeLimits = EpisodeLimits()
    reward: RewardSpec | None = None
    """None: the trajectory is not scored (reward null), never 0."""
    workspace: WorkspaceSpec | msgspec.UnsetType = msgspec.UNSET
    """What its tool session starts with; unset: an empty folder."""
    is_train: bool = True
    policy: PolicyPin | msgspec.UnsetType = msgspec.UNSET
    """Unset: whatever the worker's engine serves, the newest as a rule. Set: for evaluation only."""
    data_source: str = ""
    data_index: str = ""
    """The row in its source, for people: ``test.jsonl:17``."""
    created_at: float = 0.0
    """Unix seconds; 0 when unknown."""
    deadline: float | None = None
    """Unix seconds after which running it is pointless; None: no deadline."""
    extra: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    """Passed through to the trajectory."""
    replacement: int = 0
    """0: the member's task as first emitted; r: the r-th one that a trainer asked for in its place (backfill)."""
