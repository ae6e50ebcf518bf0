"""Sending that does not give up."""

from __future__ import annotations

import pytest

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.acknowledgement import until_acknowledged


class Outage:
    """Fails as often as it is told to, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    async def send(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "acknowledged"


async def test_however_often_the_broker_is_away_the_answer_comes_in_the_end() -> None:
    outage = Outage(*[TransientError("away")] * 50)
    assert await until_acknowledged(outage.send) == "acknowledged"
    assert outage.errors == []


async def test_what_will_never_succeed_is_not_repeated() -> None:
    outage = Outage(TransientError("away"), SettingsError("not permitted"), TransientError("away"))
    with pytest.raises(SettingsError):
        await until_acknowledged(outage.send)
    assert len(outage.errors) == 1
