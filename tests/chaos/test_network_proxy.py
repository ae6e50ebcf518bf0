from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from network_proxy import NetworkProxy

PATIENCE_S = 0.1
"""Long enough for a frame on a wire that is whole."""


def frame(correlation: int) -> bytes:
    body = struct.pack(">hhi", 99, 0, correlation)
    return struct.pack(">i", len(body)) + body


@pytest_asyncio.fixture
async def received() -> list[int]:
    return []


@pytest_asyncio.fixture
async def proxy(received: list[int]) -> AsyncIterator[NetworkProxy]:
    """In front of a server that answers every frame with its correlation id."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readexactly(4)
                body = await reader.readexactly(struct.unpack(">i", head)[0])
                received.append(struct.unpack_from(">i", body, 4)[0])
                writer.write(struct.pack(">ii", 4, received[-1]))
        except (EOFError, OSError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with NetworkProxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()
    await server.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connected(cls, proxy: NetworkProxy) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    def ask(self, correlation: int) -> None:
        self._writer.write(frame(correlation))

    async def answer(self, timeout_s: float = 5.0) -> int:
        async with asyncio.timeout(timeout_s):
            return struct.unpack(">ii", await self._reader.readexactly(8))[1]

    def close(self) -> None:
        self._writer.transport.abort()


@pytest_asyncio.fixture
async def client(proxy: NetworkProxy) -> AsyncIterator[Client]:
    client = await Client.connected(proxy)
    yield client
    client.close()


async def test_a_whole_wire_passes_everything_in_order(client: Client) -> None:
    for correlation in range(50):
        client.ask(correlation)
    assert [await client.answer() for _ in range(50)] == list(range(50))


async def test_a_black_hole_passes_on_late_what_it_took(
    proxy: NetworkProxy, client: Client, received: list[int]
) -> None:
    await proxy.set_wire("black_hole")
    client.ask(1)
    with pytest.raises(TimeoutError):
        await client.answer(PATIENCE_S)
    assert received == []
    await proxy.set_wire("whole")
    assert await client.answer() == 1


async def test_cut_answers_let_requests_land(proxy: NetworkProxy, client: Client, received: list[int]) -> None:
    await proxy.set_wire("cut_answers")
    client.ask(1)
    with pytest.raises(TimeoutError):
        await client.answer(PATIENCE_S)
    assert received == [1]
    await proxy.set_wire("whole")
    assert await client.answer() == 1


async def test_a_reset_ends_connections_and_takes_no_new_ones_until_it_is_mended(
    proxy: NetworkProxy, client: Client
) -> None:
    await proxy.set_wire("reset")
    with pytest.raises((EOFError, ConnectionResetError)):
        await client.answer()
    refused = await Client.connected(proxy)
    with pytest.raises((EOFError, ConnectionResetError)):
        await refused.answer()
    await proxy.set_wire("whole")
    again = await Client.connected(proxy)
    again.ask(2)
    assert await again.answer() == 2
    again.close()


async def test_what_a_dead_client_sent_before_the_cut_still_lands(
    proxy: NetworkProxy, client: Client, received: list[int]
) -> None:
    client.ask(1)
    assert await client.answer() == 1
    await proxy.set_wire("black_hole")
    client.ask(2)
    await asyncio.sleep(PATIENCE_S)
    client.close()
    await proxy.set_wire("whole")
    async with asyncio.timeout(5):
        while received != [1, 2]:  # noqa: ASYNC110  -- the server knows no event
            await asyncio.sleep(0.01)
