"""Settings of a tool worker."""

from __future__ import annotations

import os
import socket
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from rollstream.tool_workers.mcp_servers.settings import McpServerSettings
from rollstream.tool_workers.sandbox.container_settings import ContainerSettings, KubernetesSettings

MIB = 1024 * 1024


def default_worker_id() -> str:
    """Host and process: unique among living workers."""
    return f"tools-{socket.gethostname()}-{os.getpid()}"


class SandboxSettings(BaseModel):
    """Limits of one sandbox. Sizes in bytes; all memory-backed folders are private to the sandbox."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    memory_bytes: int = Field(default=512 * MIB, ge=64 * MIB)
    """Memory of all programs of a call and of files in memory together; looked at every 100 ms."""
    address_space_bytes: int = Field(default=4096 * MIB, ge=256 * MIB)
    """Address space of one program."""
    memory_enforcement: Literal["any", "cgroup", "watch"] = "any"
    """What holds the limit of memory: `cgroup` refuses to start where control groups cannot be had, `watch` never uses
    them, `any` uses them where it can and watches everywhere."""
    cpus: float = Field(default=0.0, ge=0)
    """Cores of one sandbox, where control groups can be had; 0: as many as there are."""
    processes: int = Field(default=64, ge=2)
    """Processes and threads."""
    open_files: int = Field(default=256, ge=16)
    """Descriptors of one program."""
    file_bytes: int = Field(default=64 * MIB, ge=4096)
    """Largest file."""
    workspace_bytes: int = Field(default=64 * MIB, ge=MIB)
    """Size of `/workspace`, which lasts as long as the session."""
    scratch_bytes: int = Field(default=32 * MIB, ge=MIB)
    """Size of `/tmp` and of `/dev/shm`, each."""
    files: int = Field(default=20_000, ge=100)
    """Files, folders and extended attributes in all writable folders together; each costs the host a kilobyte."""
    sockets: int = Field(default=512, ge=8)
    """Open sockets; what is queued in them is in no process's memory."""
    call_cpu_s: float = Field(default=600.0, gt=0)
    """Processor time of one call, all its processes together."""
    session_cpu_s: float = Field(default=3600.0, gt=0)
    """Processor time of a session; a session that has used it up runs no more programs."""
    output_bytes: int = Field(default=64 * 1024, ge=256, le=128 * 1024)
    """Output kept of one call: its beginning and its end."""
    flood_bytes: int = Field(default=8 * MIB, ge=4096)
    """Output after which a call is killed."""
    start_timeout_s: float = Field(default=20.0, gt=0)
    """Time a sandbox may take to start."""
    first_uid: int = Field(default=64100, ge=1000)
    """Started as root, sandboxes run under this user id and the following ones."""
    uids: int = Field(default=800, ge=1)
    """How many user ids are used in turn."""


class SearchSettings(BaseModel):
    """What the tool `search` searches."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    corpus: str | None = None
    """Documents, as fsspec reads them: JSONL or Parquet with `title` and `text`, a text file with one in each
    paragraph, or a folder of text files."""
    url: str | None = None
    """A retrieval service that takes {queries, topk, return_scores}, as Search-R1's does."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Of one request to the service."""
    max_documents: int = Field(default=1_000_000, ge=1)
    """Documents of the corpus, all in memory."""
    max_document_chars: int = Field(default=2000, ge=100)
    """What the model reads of one document."""


class ToolWorkerSettings(BaseModel):
    """What one tool worker process needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    toolset: str = "default"
    """Serves the topic `tool-calls.<toolset>`."""
    tools: tuple[str, ...] = ("calculator", "bash", "python")
    """Built-in names, modules, `file.py` with functions under `@tool`, or `mcp:<name>` for a server of `mcp`."""
    mcp: dict[str, McpServerSettings] = Field(default_factory=dict[str, McpServerSettings])
    """MCP servers by name; those that `tools` names are mounted."""
    mcp_allowed_hosts: tuple[str, ...] = ()
    """Hosts (`host` or `host:port`) that MCP servers with a `url` may be on."""
    secrets: dict[str, SecretStr] = Field(default_factory=dict[str, SecretStr])
    """Secrets by name; what is not here is looked for in the environment as `ROLLSTREAM_SECRET_<NAME>`."""
    worker_id: str = Field(default_factory=default_worker_id)
    """Name in logs, status and results."""
    instance_id: str | None = None
    """Stable name of this worker across restarts: a restart within the session time-out moves no partitions."""
    isolation: Annotated[
        Literal["bwrap", "docker", "kubernetes", "unsafe-local"],
        BeforeValidator(lambda given: "bwrap" if given == "bubblewrap" else given),
    ] = "bwrap"
    """What holds model-written code: bubblewrap, containers, pods, or (`unsafe-local`, by name only) nothing at all."""
    sandbox: SandboxSettings = Field(default_factory=SandboxSettings)
    """Limits of one sandbox."""
    search: SearchSettings = Field(default_factory=SearchSettings)
    """What the tool `search` searches."""
    state_timeout_s: float = Field(default=30.0, gt=0)
    """What setting up or taking down the state of a session's tool may take."""
    container: ContainerSettings = Field(default_factory=ContainerSettings)
    """How containers are started, with `isolation = "docker"`."""
    kubernetes: KubernetesSettings = Field(default_factory=KubernetesSettings)
    """How pods are claimed, with `isolation = "kubernetes"`."""
    max_running_calls: int = Field(default=256, ge=1)
    """Calls running at once."""
    max_waiting_calls: int = Field(default=1024, ge=1)
    """Calls that wait for a sandbox, besides those running; further ones are sent again by their callers."""
    max_running_programs: int = Field(default=0, ge=0)
    """Sandboxed calls running at once; 0: four per core."""
    workspace_roots: tuple[str, ...] = ()
    """What the URIs of workspaces must begin with, e.g. `s3://bucket/workspaces`; others are refused."""
    max_workspace_bytes: int = Field(default=128 * MIB, ge=1)
    """Of one archive."""
    kept_workspace_bytes: int = Field(default=512 * MIB, ge=0)
    """Memory for prepared workspaces."""
    max_gradings: int = Field(default=8, ge=1)
    """Gradings running at once, each in one or two fresh sandboxes, besides `max_sessions`."""
    max_sessions: int = Field(default=256, ge=1)
    """Open sandboxes; each takes about 6 MiB of memory while idle."""
    blank_sandboxes: int = Field(default=4, ge=0)
    """Opened in advance, so that the first call of an episode need not wait for one; besides `max_sessions`."""
    blank_sandbox_s: float = Field(default=3600.0, gt=0)
    """A sandbox that was opened in advance and not used for so long is replaced."""
    session_wall_s: float = Field(default=6 * 3600.0, gt=0)
    """A session as old as this is closed, whatever it does."""
    idle_session_s: float = Field(default=1800.0, gt=0)
    """A session without calls for so long is closed."""
    reclaimable_after_s: float = Field(default=60.0, gt=0)
    """When all sessions are taken, the one idle longest is closed if it has been idle for so long."""
    max_output_chars: int = Field(default=16_000, ge=100)
    """What the model reads of one result: the beginning and the end."""
    remembered_results: int = Field(default=4096, ge=1)
    """Results of tools without state kept for callers that ask again."""
    remembered_bytes: int = Field(default=64 * MIB, ge=0)
    """Memory for those results, and as much again for the latest results in sessions."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long running calls may finish after the first SIGTERM."""
    metrics_port: int | None = None
    """Serve Prometheus metrics here."""
