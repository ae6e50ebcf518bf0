"""Sandboxes as pods: one per session, claimed from kubernetes-sigs/agent-sandbox; gVisor or Kata isolate them.

A claim (SandboxClaim, API group extensions.agents.x-k8s.io) is answered with a sandbox, whose pod runs already if it
comes from a warm pool. Programs run through `kubectl exec`, so the supervisor is not process 1 there: it is told about
its orphans (subreaper) and kills what is below it. Deleting the claim removes the pod. Claims of workers that are dead
are deleted at the next start of one on the same machine.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any, cast

from rollstream.schemas.errors import IsolationError
from rollstream.tool_workers.sandbox.container_settings import KubernetesSettings
from rollstream.tool_workers.sandbox.outside.cgroups import is_gone, process_identity
from rollstream.tool_workers.sandbox.spawning import Enforcement, SupervisorProcess
from rollstream.tool_workers.sandbox.streamed_supervisor import END_TIMEOUT_S, StreamedSupervisor, bootstrap_command
from rollstream.tool_workers.settings import SandboxSettings

logger = logging.getLogger(__name__)

GROUP = "extensions.agents.x-k8s.io"
POD_NAME = "agents.x-k8s.io/pod-name"
HOST_LABEL, WORKER_LABEL = "rollstream.dev/host", "rollstream.dev/worker"
LOOK_INTERVAL_S = 0.25


class PodSpawner:
    """Claims pods."""

    is_isolated = True

    def __init__(self, settings: KubernetesSettings, limits: SandboxSettings) -> None:
        self._settings = settings
        self._limits = limits
        self._host = label_value(socket.gethostname())
        self._worker = process_identity(os.getpid())
        self._is_swept = False

    @property
    def enforcement(self) -> Enforcement:
        """What the template says."""
        return Enforcement("kubernetes")

    def spawn(self) -> SupervisorProcess:
        """Claim a pod, wait for it, and start a supervisor in it. Raises IsolationError."""
        if not self._is_swept:
            self._sweep()
            self._is_swept = True
        name = f"rollstream-{self._worker}-{secrets.token_hex(5)}"
        self._run("apply", "--filename", "-", given=json.dumps(self.claim(name)))
        try:
            pod = self._pod(name)
            kubectl = [self._settings.program, "--namespace", self._settings.namespace]
            line = [*kubectl, "exec", "--stdin", "--quiet", pod, "--container", self._settings.container, "--"]
            program = bootstrap_command(self._settings.interpreter, self._limits, workspace=self._settings.workspace)
            command = line + program
            return StreamedSupervisor(command, lambda: self._delete(name))
        except BaseException:
            self._delete(name)
            raise

    def claim(self, name: str) -> dict[str, Any]:
        """The claim's manifest. Pure."""
        reference = "warmPoolRef" if self._settings.api_version == "v1beta1" else "sandboxTemplateRef"
        return {
            "apiVersion": f"{GROUP}/{self._settings.api_version}",
            "kind": "SandboxClaim",
            "metadata": {
                "name": name,
                "namespace": self._settings.namespace,
                "labels": {HOST_LABEL: self._host, WORKER_LABEL: self._worker},
            },
            "spec": {reference: {"name": self._settings.warm_pool}},
        }

    def explain(self, complaint: str) -> str:
        """What kubectl's complaint means and what to do about it."""
        text = complaint.lower()
        if "forbidden" in text:
            return "the tool worker's account may not do that: see the Role in deploy/agent-sandbox.yaml"
        if "executable file not found" in text or "no such file" in text:
            return f"the image of the template needs {self._settings.interpreter!r} and bash"
        return "see the message of kubectl"

    def close(self) -> None:
        """Delete what is left of ours."""
        self._run_quietly("delete", "sandboxclaims", "--selector", f"{WORKER_LABEL}={self._worker}", "--wait=false")

    def _pod(self, claim: str) -> str:
        """Of a claim that is answered; waits for it."""
        deadline = time.monotonic() + self._settings.ready_timeout_s
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            status = self._get(f"sandboxclaims.{GROUP}", claim).get("status", {})
            sandbox = status.get("sandbox", {}).get("name") or status.get("sandbox", {}).get("Name")
            if sandbox and is_ready(status):
                annotations = self._get("sandboxes.agents.x-k8s.io", sandbox)["metadata"].get("annotations", {})
                return str(annotations.get(POD_NAME) or sandbox)
            time.sleep(LOOK_INTERVAL_S)
        raise IsolationError(
            f"no pod within {self._settings.ready_timeout_s:g} s for a claim of {self._settings.warm_pool!r} in "
            f"namespace {self._settings.namespace!r}: {json.dumps(status.get('conditions', []))[:500]}; see that "
            "agent-sandbox is installed and its pool has room"
        )

    def _get(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(self._run("get", kind, name, "--output", "json"))

    def _sweep(self) -> None:
        listed = self._run_quietly(
            "get", f"sandboxclaims.{GROUP}", "--selector", f"{HOST_LABEL}={self._host}", "--output", "json"
        )
        with suppress(ValueError, KeyError, TypeError):
            for item in json.loads(listed)["items"]:
                if is_gone(str(item["metadata"]["labels"][WORKER_LABEL])):
                    self._delete(str(item["metadata"]["name"]))

    def _delete(self, name: str) -> None:
        self._run_quietly("delete", f"sandboxclaims.{GROUP}", name, "--ignore-not-found", "--wait=false")

    def _run_quietly(self, *arguments: str) -> str:
        try:
            return self._run(*arguments)
        except IsolationError as error:
            logger.warning("%s", error)
            return ""

    def _run(self, *arguments: str, given: str = "") -> str:
        command = [self._settings.program, "--namespace", self._settings.namespace, *arguments]
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, timeout=END_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise IsolationError(f"{self._settings.program!r} cannot be run: {error}") from error
        if done.returncode != 0:
            said = done.stderr.strip()[-500:]
            raise IsolationError(f"{self._settings.program} {arguments[0]} failed: {said}; {self.explain(said)}")
        return done.stdout


def label_value(text: str) -> str:
    """A text as the value of a label: letters, digits and dashes, at most 63."""
    return "".join(each for each in text.lower() if each.isalnum() or each == "-")[:63].strip("-")


def is_ready(status: dict[str, Any]) -> bool:
    """Whether the conditions of an object say so."""
    conditions = cast("list[dict[str, Any]]", status.get("conditions", []))
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
