"""Files into a sandbox's workspace."""

from __future__ import annotations

from rollstream.tool_workers.sandbox.bubblewrap import WORKSPACE
from rollstream.tool_workers.sandbox.replies import Execution
from rollstream.tool_workers.sandbox.sandbox import Sandbox


async def unpack(sandbox: Sandbox, archive: bytes, *, timeout_s: float) -> Execution:
    """Unpack an uncompressed tar there; its output names what was left out. Raises SandboxLostError."""
    arguments = {"action": "unpack", "folder": WORKSPACE}
    return await sandbox.operate("archive", arguments, timeout_s=timeout_s, stdin=archive)
