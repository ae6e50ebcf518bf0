"""Fills in what tools ask for besides their arguments: states of sessions, what is shared, secrets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rollstream.schemas.errors import TransientError
from rollstream.schemas.tools import ToolCall
from rollstream.tool_workers.functions import Tool
from rollstream.tool_workers.tool_resources import ToolResource
from rollstream.tool_workers.tool_secrets import Redaction, Secrets
from rollstream.tool_workers.tool_states import SessionInfo, ToolState, ToolStates

DEFAULT_STATE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Provision:
    """What one worker has to give.

    Attributes:
        secrets: by tool.
    """

    states: ToolStates = field(default_factory=lambda: ToolStates(timeout_s=DEFAULT_STATE_TIMEOUT_S))
    resources: Mapping[type[ToolResource], ToolResource] = field(default_factory=dict[type[ToolResource], ToolResource])
    secrets: Mapping[str, Secrets] = field(default_factory=dict[str, Secrets])

    @property
    def redaction(self) -> Redaction:
        """Takes all of its secrets out of texts."""
        return Redaction(self.secrets.values())

    async def of(self, tool: Tool, call: ToolCall, incarnation: str | None) -> dict[str, Any]:
        """Values of the tool's provided parameters.

        Raises:
            TransientError: a state cannot be set up.
        """
        given: dict[str, Any] = {}
        for parameter, kind in tool.provided.items():
            if issubclass(kind, ToolState):
                if call.session_id is None or incarnation is None:
                    raise TransientError(f"tool {tool.name!r} keeps state, its call {call.call_id!r} has no session")
                session = SessionInfo(call.session_id, call.trajectory_id, incarnation)
                given[parameter] = await self.states.of(kind, session)
            elif issubclass(kind, ToolResource):
                given[parameter] = self.resources[kind]
            else:
                given[parameter] = self.secrets[tool.name]
        return given
