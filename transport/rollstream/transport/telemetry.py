"""Logs of a process: one line per record, for people or as JSON, with the ids of what is being worked on.

The Kafka client repeats itself some 75 times a second while a broker is away, and every send that waits for it says so;
of each such message only the first few in a period are let through, and the next one says how many were held back.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO

LogFormat = Literal["human", "json"]

FLOODING_LOGGERS = (
    "aiokafka",
    "rollstream.transport",
    "rollstream.rollout_workers.task_handling",
    "rollstream.tool_workers.service",
    "rollstream.trainers.stream",
    "rollstream.cli.record_stream",
)
"""The client, and those of ours who say the same of every record or of every send."""
QUIET_LOGGERS = {"vllm": logging.ERROR}
"""Below these levels libraries tell of accelerators that are not there. Kafka's tells of every step of a rebalance."""
FLOOD_PERIOD_S = 30.0
FLOOD_RECORDS = 3
_CONTEXT_ATTRIBUTE = "rollstream_context"

_context: ContextVar[dict[str, str]] = ContextVar("log_context", default={})  # noqa: B039  -- never changed in place


def set_up_logging(
    *,
    log_format: LogFormat = "human",
    level: str | int = logging.INFO,
    client_level: int = logging.WARNING,
    stream: TextIO | None = None,
) -> None:
    """Send the logs of this process to ``stream`` (standard error by default). Calling again replaces the set-up.

    ``client_level``: below it the Kafka client is silent. What matters of it is in our own errors.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.addFilter(_add_context)
    handler.addFilter(FloodFilter())
    handler.setFormatter(JsonFormatter() if log_format == "json" else HumanFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name, floor in {**QUIET_LOGGERS, "aiokafka": client_level}.items():
        logging.getLogger(name).setLevel(max(floor, logging.getLogger().level))


@contextmanager
def log_context(**ids: str | int) -> Generator[None]:
    """Add ids (``group_id``, ``trajectory_id``, …) to every record logged inside, in this task and those it starts."""
    token = _context.set(_context.get() | {name: str(value) for name, value in ids.items()})
    try:
        yield
    finally:
        _context.reset(token)


class HumanFormatter(logging.Formatter):
    """``12:00:00 WARNING transport.clients message  group_id=…``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(short_name)s %(message)s%(ids)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback if there is one."""
        record.short_name = record.name.removeprefix("rollstream.")
        record.ids = "".join(f"  {name}={value}" for name, value in _ids(record).items())
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object per record: ``at`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, ids, ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class FloodFilter(logging.Filter):
    """Holds back what ``loggers`` say over and over: the same message (before its arguments) within a period."""

    def __init__(
        self,
        loggers: tuple[str, ...] = FLOODING_LOGGERS,
        *,
        records: int = FLOOD_RECORDS,
        period_s: float = FLOOD_PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._loggers = loggers
        self._records = records
        self._period_s = period_s
        self._clock = clock
        self._floods: dict[tuple[str, str], _Flood] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to let the record through."""
        if not any(record.name == name or record.name.startswith(f"{name}.") for name in self._loggers):
            return True
        now = self._clock()
        flood = self._floods.setdefault((record.name, str(record.msg)), _Flood(now))
        held_back = flood.held_back
        if now - flood.started >= self._period_s:
            flood.started, flood.passed, flood.held_back = now, 0, 0
        if flood.passed >= self._records:
            flood.held_back += 1
            return False
        flood.passed += 1
        if held_back and flood.passed == 1:
            record.msg = f"{record.getMessage()} ({held_back} more like it were held back)"
            record.args = None
        return True


@dataclass(slots=True)
class _Flood:
    started: float
    passed: int = 0
    held_back: int = 0


def _add_context(record: logging.LogRecord) -> bool:
    setattr(record, _CONTEXT_ATTRIBUTE, _context.get())
    return True


def _ids(record: logging.LogRecord) -> dict[str, str]:
    return getattr(record, _CONTEXT_ATTRIBUTE, {})
