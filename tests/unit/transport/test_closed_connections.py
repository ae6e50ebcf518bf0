# aiokafka is only partly annotated.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
from __future__ import annotations

import asyncio

import pytest
import uvloop
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest

from rollstream.transport import clients

assert clients  # it changes the connections of every client


def test_a_connection_that_closed_a_moment_ago_is_a_broken_connection() -> None:
    async def send_after_close() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        connection = AIOKafkaConnection("127.0.0.1", port)
        connection._reader, writer = await asyncio.open_connection("127.0.0.1", port)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]  -- without the greeting of a broker
        connection._writer = writer  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]  -- likewise
        connection._versions = {3: (0, 5)}  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]  -- likewise
        connection._read_task = asyncio.create_task(asyncio.sleep(0))  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]  -- likewise
        writer.transport.abort()
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="closed"):
            writer.write(b"what uvloop says by itself")
        try:
            with pytest.raises(KafkaConnectionError, match="broken"):
                connection.send(MetadataRequest([]))
            assert not connection.connected()
        finally:
            server.close()
            await server.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(send_after_close())
