"""An asynchronous resource behind synchronous calls: it lives on an event loop of its own, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, TypeVar

from rollstream.schemas.errors import SettingsError

T = TypeVar("T")


class LoopThread:
    """Opens and closes one async context manager, and runs coroutines where it lives. Used by one thread at a time."""

    def __init__(self, resource: AbstractAsyncContextManager[Any], *, usage: str) -> None:
        """``usage``: how it is opened, for the error of whoever did not."""
        self._resource = resource
        self._usage = usage
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opened: Future[None] = Future()
        self._close: asyncio.Event | None = None
        self._owner: Future[None] | None = None

    def open(self) -> None:
        """Enter the resource; what it raises is raised here, with the thread gone."""
        loop = self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=loop.run_forever, name="rollstream-trajectories", daemon=True)
        self._thread.start()
        self._owner = asyncio.run_coroutine_threadsafe(self._own(), loop)
        try:
            self._opened.result()
        except BaseException:
            self._owner.cancel()
            with suppress(BaseException):
                self._owner.result()
            self._stop()
            raise

    def close(self) -> None:
        """Leave the resource and end the thread."""
        assert self._close is not None
        assert self._owner is not None
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._close.set)
            self._owner.result()
        finally:
            self._stop()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs there.

        Raises:
            SettingsError: the resource is not open.
        """
        if self._loop is None or self._owner is None or self._owner.done():
            coroutine.close()
            if self._owner is not None:
                self._owner.result()
            raise SettingsError(self._usage)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _own(self) -> None:
        """Opens and closes in one task, as background work of the resource demands."""
        self._close = asyncio.Event()
        try:
            async with self._resource:
                self._opened.set_result(None)
                await self._close.wait()
        except BaseException as error:
            if not self._opened.done():
                self._opened.set_exception(error)
            raise

    def _stop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
