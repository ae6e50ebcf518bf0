from __future__ import annotations

import logging
from typing import Any, cast

import pytest

from rollstream.schemas.control import WorkerStatus
from rollstream.schemas.errors import RollstreamError, TopicDeniedError, TransientError
from rollstream.transport.heartbeat import LOG_EVERY_S, Heartbeat
from rollstream.transport.publisher import Publisher


class FailingPublisher:
    """Fails every time, and counts."""

    def __init__(self, error: RollstreamError) -> None:
        self._error = error
        self.tries = 0

    async def publish(self, message: object, **_: Any) -> None:
        self.tries += 1
        raise self._error


def status(at_s: float, state: Any = "running") -> WorkerStatus:
    return WorkerStatus(worker_id="w", role="tool-worker", state=state, running=0, finished=0, updated_at=at_s)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


async def test_a_refused_status_goes_to_the_log_once_a_minute_and_when_the_state_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    publisher = FailingPublisher(TopicDeniedError("no"))
    heartbeat = Heartbeat(cast("Publisher", publisher))
    for at_s in (0.0, 5.0, LOG_EVERY_S - 1, LOG_EVERY_S, LOG_EVERY_S + 5):
        await heartbeat.say(status(at_s))
    await heartbeat.say(status(LOG_EVERY_S + 10, "stopped"))

    said = logged(caplog)
    assert publisher.tries == 1
    assert len([text for text in said if "in its log and metrics only" in text]) == 1
    told = [text for text in said if text.startswith("status of w: ")]
    assert len(told) == 3
    assert '"state":"stopped"' in told[-1]


async def test_a_broker_that_is_away_is_no_refusal(caplog: pytest.LogCaptureFixture) -> None:
    publisher = FailingPublisher(TransientError("away"))
    heartbeat = Heartbeat(cast("Publisher", publisher))
    for at_s in (0.0, 5.0):
        await heartbeat.say(status(at_s))
    assert publisher.tries == 2
    assert not any("status of w: " in text for text in logged(caplog))
