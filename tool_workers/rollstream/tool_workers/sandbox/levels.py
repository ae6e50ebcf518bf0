"""The levels of isolation by name."""

from __future__ import annotations

import sys

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.container_settings import ContainerSettings, KubernetesSettings
from rollstream.tool_workers.sandbox.containers import ContainerSpawner
from rollstream.tool_workers.sandbox.pods import PodSpawner
from rollstream.tool_workers.sandbox.spawning import BubblewrapSpawner, Spawner, UnsafeLocalSpawner
from rollstream.tool_workers.settings import SandboxSettings

LEVELS = ("bwrap", "docker", "kubernetes", "unsafe-local")


def build_spawner(
    isolation: str,
    limits: SandboxSettings,
    *,
    container: ContainerSettings | None = None,
    kubernetes: KubernetesSettings | None = None,
) -> Spawner:
    """What the setting ``isolation`` names.

    Raises:
        IsolationError: it is not possible here, or there is no such level.
    """
    if not sys.platform.startswith("linux"):
        raise IsolationError(f"sandboxes need Linux, this is {sys.platform!r}: run the tool worker in a Linux machine")
    match isolation:
        case "bwrap":
            return BubblewrapSpawner(limits)
        case "docker":
            return ContainerSpawner(container or ContainerSettings(), limits)
        case "kubernetes":
            return PodSpawner(kubernetes or KubernetesSettings(), limits)
        case "unsafe-local":
            return UnsafeLocalSpawner(limits)
        case _:
            raise IsolationError(f"there is no isolation {isolation!r}: take one of {', '.join(LEVELS)}")
