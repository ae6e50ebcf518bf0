"""SIGTERM and Ctrl-C as an event: the first asks a role to drain, the second makes it leave at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager

EXIT_AT_ONCE = 130


@contextmanager
def stop_on_signals() -> Generator[asyncio.Event]:
    """An event set by the first SIGTERM or SIGINT. Must be entered inside a running loop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            os._exit(EXIT_AT_ONCE)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
