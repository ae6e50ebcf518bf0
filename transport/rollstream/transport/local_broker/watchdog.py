"""A broker of ours that dies while it is needed is started again, on the same ports and with the same data."""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator
from contextlib import contextmanager

from rollstream.schemas.errors import RollstreamError
from rollstream.transport.local_broker.kraft import LocalBroker
from rollstream.transport.local_broker.state import is_alive

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
LONGEST_PAUSE_S = 15.0
"""Between two starts that failed."""


@contextmanager
def kept_alive(broker: LocalBroker) -> Generator[None]:
    """Watch a started broker, in a thread, for as long as the block runs."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(broker, over), name="broker watchdog", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(broker: LocalBroker, over: threading.Event) -> None:
    pause_s = LOOK_EVERY_S
    while not over.wait(pause_s):
        state = broker.state
        if is_alive(state.pid, state.started_ticks):
            pause_s = LOOK_EVERY_S
            continue
        logger.error("the broker %s (pid %s) is dead; it is started again", state.bootstrap, state.pid)
        try:
            broker.start()
        except RollstreamError as error:
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            logger.error("the broker did not come back, next try in %g s: %s", pause_s, error)
