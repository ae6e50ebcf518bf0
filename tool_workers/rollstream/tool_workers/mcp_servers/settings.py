"""Settings of one MCP server. Knows neither the library nor the worker."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class McpServerSettings(BaseModel):
    """A server that is started in a sandbox (`command`), or one that runs elsewhere (`url`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    command: tuple[str, ...] = ()
    """Absolute path of a program and its arguments; speaks MCP on its standard streams, in a sandbox of its own."""
    environment: dict[str, str] = Field(default_factory=dict[str, str])
    """For `command`: variables on top of those of all programs. Model-written text may reach them: no secrets."""
    files: Path | None = None
    """For `command`: a folder whose content, or a file that, is put into `/workspace` first."""
    url: str | None = None
    """Endpoint of streamable HTTP; its host must be among `mcp_allowed_hosts`."""
    headers: dict[str, str] = Field(default_factory=dict[str, str])
    """For `url`: header -> name of the secret that is its value."""
    tools: tuple[str, ...] | None = None
    """Take only these of the server's tools; None: all."""
    prefix: str | None = None
    """Stands before the tools' names; None: the server's name and an underscore."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest time of a call."""
    start_timeout_s: float = Field(default=20.0, gt=0)
    """Time a server may take until it has introduced itself."""
    per: Literal["session", "worker"] | None = None
    """`session`: a server, or a connection, of its own for every session; `worker`: one for all, which must keep no
    state. None: `session` with `command`, `worker` with `url`."""
    is_idempotent: bool | None = None
    """Whether a call may be run twice. None: true with `command`, false with `url`, whose effects are elsewhere."""
    max_sessions: int = Field(default=64, ge=1)
    """Servers of sessions open at once, besides the worker's own `max_sessions`."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> McpServerSettings:
        if bool(self.command) == (self.url is not None):
            raise ValueError("exactly one of command and url says where the server is")
        if self.command and not self.command[0].startswith("/"):
            raise ValueError(f"command {self.command[0]!r}: expected an absolute path inside the sandbox")
        if self.url is not None and (self.files is not None or self.environment):
            raise ValueError("files and environment belong to command: a server behind a url has its own")
        if self.command and self.headers:
            raise ValueError("headers belong to url")
        return self

    @property
    def is_per_session(self) -> bool:
        """Whether sessions share nothing."""
        return bool(self.command) if self.per is None else self.per == "session"

    @property
    def may_run_twice(self) -> bool:
        """Whether its calls are idempotent."""
        return bool(self.command) if self.is_idempotent is None else self.is_idempotent


def url_problem(url: str, allowed_hosts: tuple[str, ...]) -> str | None:
    """Why the endpoint must not be asked; None: it may. Hosts are compared whole, with or without their port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"it is no URL: {error}"
    if parts.scheme not in ("https", "http") or not host:
        return "expected https://HOST/..."
    if parts.username is not None or parts.password is not None:
        return "it holds a user name or a password: give them as headers out of secrets"
    if parts.scheme == "http" and host not in LOOPBACK_HOSTS:
        return "expected https: without it anybody on the way reads and changes what is said"
    shown = f"[{host}]" if ":" in host else host
    names = {host, shown} if port is None else {host, shown, f"{shown}:{port}"}
    if names.isdisjoint(name.lower() for name in allowed_hosts):
        return f"its host {host!r} is not among tool_worker.mcp_allowed_hosts {list(allowed_hosts)}"
    return None
