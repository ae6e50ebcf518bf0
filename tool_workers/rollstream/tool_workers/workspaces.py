"""The files that tool sessions start with: fetched, checked, stripped of history, and put into sandboxes.

Nothing is unpacked on this machine outside of a sandbox. An archive is prepared once, in a sandbox of its own that is
closed before any agent's is opened, and what comes out of it is kept for the sessions that follow.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import fsspec

from rollstream.schemas.errors import TransientError
from rollstream.schemas.tasks import WorkspaceSpec
from rollstream.tool_workers.sandbox.bubblewrap import WORKSPACE
from rollstream.tool_workers.sandbox.sandbox import Sandbox
from rollstream.tool_workers.sandbox.workspace_files import unpack
from rollstream.tool_workers.sandbox_pool import SandboxOpener

PREPARE_TIMEOUT_S = 300.0
UNPACK_TIMEOUT_S = 60.0
FETCH_TIMEOUT_S = 300.0


class WorkspaceError(TransientError):
    """A workspace cannot be made here; says of what, why, and what to do."""


class Workspaces:
    """All that this worker has prepared.

    Args:
        opener: opens the sandboxes that archives are prepared in.
        roots: what the URIs of workspaces must begin with; nothing else is ever fetched.
        max_bytes: of one archive, before and after it was prepared.
        kept_bytes: of prepared ones together; those unused for longest are forgotten.
    """

    def __init__(self, opener: SandboxOpener, *, roots: Sequence[str], max_bytes: int, kept_bytes: int) -> None:
        self._opener = opener
        self._roots = tuple(roots)
        self._max_bytes = max_bytes
        self._kept_bytes = kept_bytes
        self._prepared: OrderedDict[WorkspaceSpec, bytes] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    async def provision(self, sandbox: Sandbox, spec: WorkspaceSpec) -> None:
        """Put a workspace into a fresh sandbox.

        Raises:
            WorkspaceError: it cannot be had, or is not what the task says.
            SandboxLostError: a sandbox has died meanwhile.
        """
        content = await self._content(spec)
        done = await unpack(sandbox, content, timeout_s=UNPACK_TIMEOUT_S)
        if done.cause is not None or done.exit_code != 0:
            raise WorkspaceError(
                f"workspace {spec.uri!r} does not fit into a sandbox ({done.cause or done.output[-200:]}): raise "
                "sandbox.workspace_bytes or sandbox.files"
            )

    async def _content(self, spec: WorkspaceSpec) -> bytes:
        """The prepared archive; whoever comes while it is prepared waits for it."""
        async with self._one_at_a_time:
            content = self._prepared.get(spec)
            if content is None:
                content = self._prepared[spec] = await self._prepare(spec)
            self._prepared.move_to_end(spec)
            while len(self._prepared) > 1 and sum(map(len, self._prepared.values())) > self._kept_bytes:
                self._prepared.popitem(last=False)
            return content

    async def _prepare(self, spec: WorkspaceSpec) -> bytes:
        archive = await self._fetched(spec)
        sandbox = await self._opener.open()
        try:
            prepared = await sandbox.operate(
                "workspace",
                {"kind": spec.kind, "folder": WORKSPACE},
                timeout_s=PREPARE_TIMEOUT_S,
                stdin=archive,
                output_bytes=2 * self._max_bytes,
            )
        finally:
            await sandbox.close()
        if prepared.cause is not None or prepared.exit_code != 0 or len(prepared.raw) != prepared.total_bytes:
            reason = prepared.cause or prepared.output.rpartition("\0")[2][-300:] or "it is too large"
            raise WorkspaceError(f"workspace {spec.uri!r} ({spec.kind}) cannot be prepared: {reason}")
        return prepared.raw

    async def _fetched(self, spec: WorkspaceSpec) -> bytes:
        if not any(is_below(spec.uri, root) for root in self._roots):
            raise WorkspaceError(
                f"workspace {spec.uri!r} is below none of {list(self._roots)}: add where it lies to "
                "tool_worker.workspace_roots"
            )
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                content = await asyncio.to_thread(self._read, spec.uri)
        except (OSError, ValueError, ImportError) as error:
            raise WorkspaceError(f"workspace {spec.uri!r} cannot be read: {error!r}") from error
        if len(content) > self._max_bytes:
            raise WorkspaceError(f"workspace {spec.uri!r} is larger than max_workspace_bytes = {self._max_bytes}")
        found = hashlib.sha256(content).hexdigest()
        if found != spec.sha256.lower():
            raise WorkspaceError(f"workspace {spec.uri!r} has sha256 {found}, the task says {spec.sha256}")
        return content

    def _read(self, uri: str) -> bytes:
        source: Any = cast("Any", fsspec).open(uri, "rb")  # fsspec has no annotations
        with source as file:
            return file.read(self._max_bytes + 1)


def is_below(uri: str, root: str) -> bool:
    """Whether a URI lies below a root, without detours."""
    return bool(root) and uri.startswith(root.rstrip("/") + "/") and not {"..", "."} & set(uri.split("/"))
