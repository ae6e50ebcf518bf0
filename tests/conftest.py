"""Fixtures every test may use: one broker for the session, one set of topics for each test that asks for it."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false
# (aiokafka's admin client is only partly annotated)

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from rollstream.transport.settings import KafkaSettings

BOOTSTRAP_VARIABLE = "ROLLSTREAM_TEST_BOOTSTRAP"
PARTITIONS = {
    "tasks": 4,
    "journal": 4,
    "tool-calls.default": 2,
    "tool-results": 4,
    "trajectories": 2,
    "dead-letters": 1,
}


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a real broker: ``ROLLSTREAM_TEST_BOOTSTRAP``, else one that dies with the suite."""
    if given := os.environ.get(BOOTSTRAP_VARIABLE):
        yield given
        return
    from rollstream.transport.local_broker import BrokerSettings, ensure_broker

    settings = BrokerSettings(data_dir=tmp_path_factory.mktemp("broker"))
    with ensure_broker(settings) as bootstrap:
        yield bootstrap


@pytest_asyncio.fixture
async def kafka(broker: str) -> AsyncIterator[KafkaSettings]:
    """Settings under a prefix of the test's own, its topics created with few partitions and deleted afterwards."""
    from rollstream.transport.clients import admin_client
    from rollstream.transport.settings import KafkaSettings
    from rollstream.transport.topic_admin import apply_topics

    settings = KafkaSettings(bootstrap=broker, prefix=f"test-{uuid.uuid4().hex[:12]}.", partitions=PARTITIONS)
    await apply_topics(settings)
    yield settings
    async with admin_client(settings) as admin:
        ours = [name for name in await admin.list_topics() if name.startswith(settings.prefix)]
        await admin.delete_topics(ours)
