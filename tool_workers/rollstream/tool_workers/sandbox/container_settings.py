"""How sandboxes are had where containers or pods hold them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ContainerSettings(BaseModel):
    """Of `isolation = "docker"`: a container per session, started by a container engine's command."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    program: str = "docker"
    """The engine's command: `docker`, `podman`, or a path."""
    image: str = ""
    """Holds bash and Python 3.9 or later; nothing else is asked of it."""
    rootfs: str = ""
    """In place of an image, a folder (podman)."""
    runtime: str = ""
    """The runtime, e.g. `runsc` for gVisor; empty: the engine's own."""
    interpreter: str = "python3"
    """Python inside."""
    mounts: tuple[str, ...] = ()
    """Further folders, read-only: `/folder/of/the/host:/folder/inside`."""
    options: tuple[str, ...] = ()
    """Further options of the engine's `run`, e.g. `--platform=linux/amd64`."""


class KubernetesSettings(BaseModel):
    """Of `isolation = "kubernetes"`: a pod per session, claimed from kubernetes-sigs/agent-sandbox by `kubectl`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    program: str = "kubectl"
    """The command, or its path."""
    namespace: str = "rollstream-sandboxes"
    """Where the pods live; nothing else should."""
    warm_pool: str = "rollstream"
    """Name of the SandboxWarmPool (v1beta1) or of the SandboxTemplate (v1alpha1) that is claimed from."""
    api_version: Literal["v1beta1", "v1alpha1"] = "v1beta1"
    """Of the API group extensions.agents.x-k8s.io."""
    workspace: str = "/workspace"
    """Where programs start; writable for the container's user."""
    container: str = "sandbox"
    """The container of the pod that programs run in."""
    interpreter: str = "python3"
    """Python inside."""
    ready_timeout_s: float = Field(default=120.0, gt=0)
    """Until a claimed pod runs."""
