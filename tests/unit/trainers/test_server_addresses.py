"""An address that is none is no server that may come back."""

from __future__ import annotations

import pytest

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.trainers.adapters.agent_lightning.pusher import AgentLightningServer
from rollstream.trainers.adapters.atropos.api import AtroposServer


@pytest.mark.parametrize("url", ["localhost:8000", "host", "ftp://host:8000"])
async def test_what_is_no_address_is_refused_at_the_first_request(url: str) -> None:
    async with AtroposServer(url) as server:
        with pytest.raises(SettingsError, match="name it as http://"):
            await server.trainer()
    async with AgentLightningServer(url) as rollouts:
        with pytest.raises(SettingsError, match="name it as http://"):
            await rollouts.waiting_rollouts(1)


async def test_a_server_that_is_away_may_come_back(unused_tcp_port: int) -> None:
    async with AtroposServer(f"http://127.0.0.1:{unused_tcp_port}") as server:
        with pytest.raises(TransientError, match="no answer"):
            await server.trainer()
