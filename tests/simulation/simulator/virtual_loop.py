"""An asyncio event loop in virtual time whose order of execution is drawn from a seed.

Ready callbacks are kept by (number of their task, arrival), which does not depend on memory addresses or on the order
of sets; a seeded generator picks the task that runs next. Within a task callbacks run in order of arrival. Time passes
only when nothing is ready. So the whole execution is a function of the seed.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import random
import sys
import warnings
from asyncio import events
from bisect import insort
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from simulator.processes import OWNER, Owner, Process, ReadyEntry

T = TypeVar("T")


class StuckError(Exception):
    """Nothing is ready and nothing is scheduled: the simulated world waits for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs until ``stop_when`` says so. ``time()`` is virtual seconds."""

    def __init__(self, rng: random.Random, world: Process) -> None:
        super().__init__()
        self._random = rng.random
        self._now = 1000.0
        self._ready_entries: list[ReadyEntry] = []
        self._timers: list[tuple[float, int, int, asyncio.Handle, Process]] = []
        self._arrivals = 0
        self._tasks_made = 0
        self._world = Owner(0, world)
        self._tasks: list[asyncio.Task[Any]] = []
        self.is_torn_down = False
        self.steps = 0
        self.digest = 0
        """Of the order in which everything ran."""
        self.failures: list[str] = []
        """What reached the loop's exception handler."""
        self.set_task_factory(self._make_task)  # pyright: ignore[reportArgumentType]  -- typeshed wants a generic one
        self.set_exception_handler(_note_failure)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As asyncio; nothing happens any more after ``tear_down``."""
        handle = asyncio.Handle(callback, args, self, context)
        if not self.is_torn_down:
            owner = self._owner(handle)
            self._arrivals += 1
            insort(self._ready_entries, (owner.task, self._arrivals, handle, owner.process))
        return handle

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """As asyncio."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.is_torn_down:
            owner = self._owner(handle)
            self._arrivals += 1
            heapq.heappush(self._timers, (when, owner.task, self._arrivals, handle, owner.process))
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """There are no threads."""
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]  -- there is no executor to choose
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """The work of threads is done at once."""
        outcome: asyncio.Future[T] = self.create_future()
        try:
            outcome.set_result(func(*args))
        except Exception as error:
            outcome.set_exception(error)
        return outcome

    def run(self, stop_when: Callable[[], bool], *, until: float) -> None:
        """Run callbacks until the predicate holds (asked after every callback) or virtual time has passed ``until``.

        Raises:
            StuckError: nothing will ever happen again.
        """
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_leave_alone)
        events._set_running_loop(self)
        try:
            while self._now <= until and not stop_when():
                self._step()
        finally:
            events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def spawn(self, process: Process, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Start the first task of a process."""
        context = contextvars.Context()
        context.run(OWNER.set, Owner(0, process))
        return context.run(self._make_task, self, work)

    def thaw(self, process: Process) -> None:
        """Let everything go on that became ready while the process was frozen."""
        process.is_frozen = False
        for entry in process.held:
            insort(self._ready_entries, entry)
        process.held.clear()

    def tear_down(self) -> None:
        """End every unfinished task without running the event loop, so that nothing is left to the collector."""
        self.is_torn_down = True
        self._ready_entries.clear()
        self._timers.clear()
        with _silence():
            events._set_running_loop(self)
            for task in self._tasks:
                if not task.done():
                    task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]  -- as asyncio itself
                    _unwind(task.get_coro())
                elif not task.cancelled():
                    task.exception()
            events._set_running_loop(None)
            self._tasks.clear()
        self.close()

    def _step(self) -> None:
        ready = self._ready_entries
        if not ready:
            self._advance()
            return
        at = 0
        if len(ready) > 1:
            at = int(self._random() * len(ready))
            task = ready[at][0]
            while at and ready[at - 1][0] == task:
                at -= 1
        entry = ready.pop(at)
        _, _, handle, process = entry
        if handle._cancelled or not process.is_alive:  # pyright: ignore[reportAttributeAccessIssue]  -- as asyncio
            return
        if process.is_frozen:
            process.held.append(entry)
            return
        self.steps += 1
        self.digest = (self.digest * 1_000_003 + entry[0] * 31 + at) & 0xFFFFFFFFFFFF
        handle._run()

    def _advance(self) -> None:
        timers = self._timers
        if not timers:
            raise StuckError("nothing is scheduled any more")
        when = timers[0][0]
        self._now = max(self._now, when)
        while timers and timers[0][0] <= when:
            _, task, arrival, handle, process = heapq.heappop(timers)
            if not handle._cancelled and process.is_alive:  # pyright: ignore[reportAttributeAccessIssue]  -- as asyncio
                insort(self._ready_entries, (task, arrival, handle, process))

    def _owner(self, handle: asyncio.Handle) -> Owner:
        context = cast("contextvars.Context", handle._context)  # pyright: ignore[reportAttributeAccessIssue]  -- as asyncio
        owner = context.get(OWNER)
        return self._world if owner is None else owner

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T] | Generator[Any, None, T],
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        chosen = contextvars.copy_context() if context is None else context
        owner = chosen.get(OWNER) or self._world
        self._tasks_made += 1
        chosen.run(OWNER.set, Owner(self._tasks_made, owner.process))
        task = asyncio.Task(work, loop=loop, context=chosen)
        self._tasks.append(task)
        return task

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""


def _unwind(work: Any) -> None:
    for _ in range(20):
        try:
            work.close()
        except RuntimeError:
            continue  # it awaits while it is being closed
        except BaseException:
            return
        return


@contextmanager
def hushed() -> Generator[None]:
    """Around a simulation and everything that refers to it: what is left of it goes silently at the end."""
    with _silence():
        try:
            yield
        finally:
            gc.collect()


@contextmanager
def _silence() -> Generator[None]:
    """Work that is unwound begins to wait again in its ``finally`` clauses; Python would complain of each."""
    hooks, hook = sys.get_asyncgen_hooks(), sys.unraisablehook
    sys.set_asyncgen_hooks(firstiter=None, finalizer=_leave_alone)
    sys.unraisablehook = _leave_alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            sys.unraisablehook = hook
            sys.set_asyncgen_hooks(*hooks)


def _leave_alone(_: object) -> None:
    return None


def _note_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, VirtualLoop)
    message, error = context.get("message", ""), context.get("exception")
    if "never retrieved" not in message and "destroyed" not in message:
        loop.failures.append(f"{message}: {error!r}")
