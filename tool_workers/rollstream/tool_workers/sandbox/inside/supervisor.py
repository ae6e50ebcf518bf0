"""PID 1 of a sandbox: runs one program at a time on request and leaves no process behind.

It shares the uid of the code it starts, so it is not dumpable (no ptrace, no access to its memory or descriptors) and,
as PID 1, deaf to signals of its own namespace. When the worker's end of the channel closes, it ends, and everything
inside with it.

A request is JSON with one of ``argv``, ``python``, ``operation`` (with ``arguments``), ``shell``, ``interpreter``,
``restart`` or ``bridge``, besides ``timeout_s``, ``stdin`` (base64) and ``output_bytes``. For replies see
``sandbox/replies.py``.
"""

from __future__ import annotations

import binascii
import collections
import importlib
import itertools
import json
import math
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable

from rollstream.tool_workers.sandbox.inside.bridge_relay import BridgeRelay
from rollstream.tool_workers.sandbox.inside.channel import Channel
from rollstream.tool_workers.sandbox.inside.denials import Denials, load_filters
from rollstream.tool_workers.sandbox.inside.limits import Limits
from rollstream.tool_workers.sandbox.inside.long_lived import LongLived, new_word, start_long_lived
from rollstream.tool_workers.sandbox.inside.output import Output
from rollstream.tool_workers.sandbox.inside.processes import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_DUMPABLE,
    Processes,
    has_started,
    prctl,
)
from rollstream.tool_workers.sandbox.inside.python_source import flush, run_python, text_stream
from rollstream.tool_workers.sandbox.inside.rest import Rest
from rollstream.tool_workers.sandbox.inside.watch import Program, ResourceWatch, watch

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module typing would take a megabyte of every sandbox
    from typing import Any, NoReturn

WARM_MODULES = (collections, itertools, math, re)
"""Imported once, so that every Python call starts with them."""
PACKAGE = "rollstream.tool_workers.sandbox.inside"
NO_CORE_BYTES = 1
"""Too little for a file, and the one value at which the kernel dumps into no pipe either; see core(5)."""


class Supervisor:
    """Serves requests until the worker's end of the channel is closed."""

    def __init__(self, channel: Channel, limits: Limits, denials: Denials) -> None:
        self._channel = channel
        self._limits = limits
        self._denials = denials
        self._processes = Processes(limits, channel, denials)
        self._rest = Rest(channel.read_fd)
        self._long_lived: dict[str, LongLived] = {}
        self._killed: set[str] = set()
        """Kinds that another call has killed; their next call says so."""

    def serve(self) -> None:
        """Answer requests one after another."""
        self._channel.send_object(
            {
                "ready": True,
                "is_namespace_init": self._processes.is_namespace_init,
                "counts_denials": self._denials.listener_fd is not None,
            }
        )
        while True:
            while self._long_lived and not self._rest.until_asked(self._has_stirred):
                self._end_all()
            request = json.loads(self._channel.receive())
            if "bridge" in request:
                self._bridge(request["bridge"])
            elif "restart" in request:
                self._end_long_lived(request["restart"])
                self._killed.discard(request["restart"])
                self._channel.send_object(self._reply(None, None, Output(2), 0.0, 0.0))
            else:
                self._channel.send_object(self._run(request))

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        resources = ResourceWatch(self._limits, self._processes)
        started_at = time.monotonic()
        output = Output(int(request.get("output_bytes") or self._limits.output_bytes))
        kind = "shell" if "shell" in request else "interpreter" if "interpreter" in request else None
        if kind is None:
            exit_code, cause = self._run_once(request, output, resources)
            is_restarted = False
        else:
            exit_code, cause, is_restarted = self._run_in_long_lived(kind, request, output, resources)
        self._forget_killed()
        run_s = time.monotonic() - started_at
        if cause is None and resources.has_run_out_of_memory:
            cause = "memory"
        return self._reply(exit_code, cause, output, run_s, resources.call_cpu_s(), is_restarted=is_restarted)

    def _run_once(
        self, request: dict[str, Any], output: Output, resources: ResourceWatch
    ) -> tuple[int | None, str | None]:
        timeout_s = float(request["timeout_s"])
        started = self._processes.start(self._body(request), cpu_s=min(timeout_s, self._limits.call_cpu_s))
        stdin = binascii.a2b_base64(request.get("stdin") or "")
        program = Program(
            started.pid,
            started.input_fd,
            started.output_fd,
            deadline=time.monotonic() + timeout_s,
            stdin=stdin,
        )
        cause = None if started.failure else self._watch(program, output, resources)
        exit_code = self._kill_all(started.pid)
        os.close(program.output_fd)
        if program.input_fd is not None:
            os.close(program.input_fd)
        if started.failure:
            cause, output.tail = "failed_to_start", bytearray(started.failure)
        return exit_code, cause

    def _body(self, request: dict[str, Any]) -> Callable[[], NoReturn]:
        if "argv" in request:
            argv: list[str] = request["argv"]

            def replace() -> NoReturn:
                os.execv(argv[0], argv)

            return replace
        if "python" in request:

            def run_source() -> NoReturn:
                has_started()
                run_python(request["python"], self._limits.workspace)

            return run_source
        operation = importlib.import_module(f"{PACKAGE}.{request['operation']}")

        def operate() -> NoReturn:
            has_started()
            sys.stdout, sys.stderr = text_stream(1), text_stream(2)
            exit_code = 0
            try:
                with open(0, "rb", closefd=False) as stdin:
                    operation.run(request["arguments"], stdin)
            except SystemExit as stop:
                exit_code = stop.code if isinstance(stop.code, int) else 1
            flush()
            os._exit(exit_code)

        return operate

    def _run_in_long_lived(
        self, kind: str, request: dict[str, Any], output: Output, resources: ResourceWatch
    ) -> tuple[int | None, str | None, bool]:
        """Exit code, cause, and whether what it knew is lost: it ended, or another call had killed it before."""
        self._forget_killed()
        was_killed = kind in self._killed
        self._killed.discard(kind)
        long_lived = self._long_lived.get(kind)
        if long_lived is None:
            long_lived = start_long_lived(self._processes, kind, self._limits.workspace, self._limits.session_cpu_s)
            self._long_lived[kind] = long_lived
        if long_lived.failure:
            output.tail = bytearray(long_lived.failure)
            self._end_long_lived(kind)
            return None, "failed_to_start", True
        word = new_word()
        body = word.encode() + b"\0" + request[kind].encode("utf-8", "surrogateescape") + b"\0"
        commands_fd = os.dup(long_lived.commands_fd)
        os.set_blocking(commands_fd, False)
        program = Program(
            long_lived.pid,
            commands_fd,
            long_lived.output_fd,
            deadline=time.monotonic() + float(request["timeout_s"]),
            stdin=body,
            done_fd=long_lived.done_fd,
        )
        long_lived.resume()
        cause = self._watch(program, output, resources)
        if program.input_fd is not None:
            os.close(program.input_fd)
        exit_code = long_lived.exit_code(word) if cause is None else None
        if exit_code is not None:
            self._kill_all(long_lived.pid, is_kept=True)
            output.drain(long_lived.output_fd, self._limits.flood_bytes)
            return exit_code, None, was_killed
        exit_code = self._kill_all(long_lived.pid)
        output.drain(long_lived.output_fd, self._limits.flood_bytes)
        self._end_long_lived(kind)
        return exit_code, cause, True

    def _forget_killed(self) -> None:
        """At once, before its number can be given to another process."""
        for kind, long_lived in list(self._long_lived.items()):
            if not long_lived.exists():
                del self._long_lived[kind]
                long_lived.close()
                self._killed.add(kind)

    def _end_long_lived(self, kind: str) -> None:
        long_lived = self._long_lived.pop(kind, None)
        if long_lived is not None:
            self._processes.kill_one(long_lived.pid)
            long_lived.close()
        if not self._long_lived:
            self._denials.shared_bytes = 0

    def _kill_all(self, pid: int, *, is_kept: bool = False) -> int | None:
        """Everything but the long-lived ones, which are stopped; one of them whose call has failed is not kept."""
        kept = {each.pid for each in self._long_lived.values() if is_kept or each.pid != pid}
        exit_code = self._processes.kill_all(pid, kept=kept)
        for each in self._long_lived.values():
            each.settle()
        if not kept:
            self._denials.shared_bytes = 0
        return exit_code

    def _has_stirred(self) -> bool:
        return any(each.has_stirred() for each in self._long_lived.values())

    def _end_all(self) -> None:
        """What goes on between calls is ended, and with it what it has started."""
        self._killed.update(self._long_lived)
        for each in self._long_lived.values():
            each.close()
        self._long_lived.clear()
        self._kill_all(0)

    def _watch(self, program: Program, output: Output, resources: ResourceWatch) -> str | None:
        flood_bytes = max(self._limits.flood_bytes, output.kept_bytes)
        return watch(program, output, resources, flood_bytes, self._denials, self._channel.read_fd)

    def _reply(
        self,
        exit_code: int | None,
        cause: str | None,
        output: Output,
        run_s: float,
        cpu_s: float,
        *,
        is_restarted: bool = False,
    ) -> dict[str, Any]:
        return {
            "exit_code": exit_code,
            "cause": cause,
            "head": _base64(output.head),
            "tail": _base64(output.tail),
            "total_bytes": output.total_bytes,
            "run_s": run_s,
            "cpu_s": cpu_s,
            "denied": self._denials.take(),
            "is_restarted": is_restarted,
        }

    def _bridge(self, request: dict[str, Any]) -> NoReturn:
        """Give the rest of the sandbox's life to one program."""
        for kind in list(self._long_lived):
            self._end_long_lived(kind)
        error_fd, error_fd_of_child = os.pipe()
        if "operation" in request:
            body = self._body(request)
        else:
            argv: list[str] = request["argv"]
            environment = {**os.environ, **request["environment"]}

            def body() -> NoReturn:
                os.execve(argv[0], argv, environment)

        resources = ResourceWatch(self._limits, self._processes)
        started = self._processes.start(body, cpu_s=self._limits.session_cpu_s, error_fd=error_fd_of_child)
        os.close(error_fd_of_child)
        if started.failure:
            output = Output(4000)
            output.tail = bytearray(started.failure)
            self._channel.send_object(self._reply(None, "failed_to_start", output, 0.0, 0.0))
        else:
            self._channel.send_object(self._reply(None, None, Output(2), 0.0, 0.0))
            relay = BridgeRelay(started, error_fd, self._channel, self._denials, resources)
            relay.relay()
            self._processes.kill_all(started.pid)
            relay.report_end()
        self._processes.kill_all(started.pid)
        os._exit(0)


def _base64(content: bytearray) -> str:
    return binascii.b2a_base64(content, newline=False).decode()


def _dump_nothing() -> None:
    """For good: the filter, loaded afterwards, lets nobody change it."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    most = NO_CORE_BYTES if hard == resource.RLIM_INFINITY else min(NO_CORE_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def main() -> None:
    """Take the channel (a descriptor of a socket, or ``stdio``) and the limits from the command line."""
    if sys.argv[1] == "stdio":
        channel = Channel(os.dup(0), os.dup(1))
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
    else:
        fd = int(sys.argv[1])
        os.set_inheritable(fd, False)
        channel = Channel(fd, fd)
    limits = Limits(sys.argv[2])
    # Python would handle it, and process 1 is deaf only to signals that it does not handle.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    _dump_nothing()
    paths = (limits.first_filter_path, limits.filter_path, limits.fallback_filter_path)
    denials = load_filters(*paths, limits.denied_names, limits.memory_bytes)
    Supervisor(channel, limits, denials).serve()
