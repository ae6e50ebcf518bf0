"""Nothing of a client is left when it has ended, against a broker that greets and then keeps its answers back."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportPrivateUsage=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# (aiokafka is only partly annotated, and what it holds is private)

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataResponse_v0

from rollstream.schemas.errors import TransientError
from rollstream.transport.abandoned_clients import abandon
from rollstream.transport.clients import start_admin, start_consumer, start_producer, stop_admin
from rollstream.transport.settings import KafkaSettings

WAIT_S = 10.0
GREETING, METADATA = 18, 3
"""Request kinds: which requests do you know; which brokers and topics are there."""


class SilentBroker:
    """Answers the greeting of a client once it may, and nothing else."""

    def __init__(self) -> None:
        self.may_greet = asyncio.Event()
        self.was_greeted = asyncio.Event()
        self.was_asked = asyncio.Event()
        self.open = 0
        self.seen = 0
        self.all_closed = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open, self.seen = self.open + 1, self.seen + 1
        self.all_closed.clear()
        try:
            while size := await reader.read(4):
                request = await reader.readexactly(*struct.unpack(">i", size))
                kind, _, correlation = struct.unpack(">hhi", request[:8])
                if kind == GREETING:
                    self.was_greeted.set()
                    await self.may_greet.wait()
                    known = [(GREETING, 0, 0), (METADATA, 0, 1)]
                    answer = struct.pack(">ihi", correlation, 0, len(known))
                    answer += b"".join(struct.pack(">hhh", *each) for each in known)
                    writer.write(struct.pack(">i", len(answer)) + answer)
                else:
                    self.was_asked.set()
        finally:
            writer.close()
            self.open -= 1
            if not self.open:
                self.all_closed.set()

    async def expect_all_closed(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self.all_closed.wait()
        assert self.seen


@pytest.fixture
async def broker() -> AsyncGenerator[SilentBroker]:
    silent = SilentBroker()
    server = await asyncio.start_server(silent.serve, "127.0.0.1", 0)
    silent.port = server.sockets[0].getsockname()[1]
    yield silent
    server.close()
    await server.wait_closed()


@pytest.fixture
def kafka(broker: SilentBroker) -> KafkaSettings:
    return KafkaSettings(bootstrap=f"127.0.0.1:{broker.port}", start_timeout_s=0.3)


def members(broker: SilentBroker) -> MetadataResponse_v0:
    return MetadataResponse_v0([(0, "127.0.0.1", broker.port)], [])


@pytest.mark.parametrize("start", [start_admin, start_consumer, start_producer])
@pytest.mark.parametrize("greets", [True, False])
async def test_a_start_that_gets_no_answer_in_time_leaves_no_connection_open(
    broker: SilentBroker, kafka: KafkaSettings, start: Callable[[KafkaSettings], Awaitable[object]], greets: bool
) -> None:
    if greets:
        broker.may_greet.set()
    with pytest.raises(TransientError, match="no working connection"):
        await start(kafka)
    broker.may_greet.set()
    await broker.expect_all_closed()
    assert broker.was_asked.is_set() == greets


async def test_a_start_that_is_cancelled_while_the_broker_is_asked_leaves_no_connection_open(
    broker: SilentBroker, kafka: KafkaSettings
) -> None:
    broker.may_greet.set()
    starting = asyncio.create_task(start_admin(kafka.model_copy(update={"start_timeout_s": WAIT_S})))
    await broker.was_asked.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await broker.expect_all_closed()


async def test_a_connection_that_stands_only_after_the_end_of_its_client_is_closed(broker: SilentBroker) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{broker.port}")
    client._client.cluster.update_metadata(members(broker))
    connecting = asyncio.create_task(client._client.ready(0))
    await broker.was_greeted.wait()
    await stop_admin(client)
    broker.may_greet.set()
    assert not await connecting
    await broker.expect_all_closed()


async def test_a_client_that_has_ended_opens_no_connection(broker: SilentBroker) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{broker.port}")
    client._client.cluster.update_metadata(members(broker))
    abandon(client)
    assert not await client._client.ready(0)
    with pytest.raises(KafkaConnectionError):
        await client.start()
    assert not broker.seen


@pytest.mark.parametrize("kind", [AIOKafkaConsumer, AIOKafkaProducer])
async def test_a_client_that_never_started_can_be_abandoned(kind: type[AIOKafkaConsumer | AIOKafkaProducer]) -> None:
    before = asyncio.all_tasks()
    client = kind(bootstrap_servers="127.0.0.1:1")
    abandon(client)
    abandon(client)
    await client.stop()
    assert asyncio.all_tasks() == before
