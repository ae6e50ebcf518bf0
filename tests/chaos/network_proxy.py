"""A wire between one process and the broker that can be cut, in several ways, and mended.

Duty: pass Kafka's frames on, with the broker's address replaced by this proxy's own, so that the process cannot find a
way around it.

Cuts: ``reset`` ends every connection at once and refuses new ones; ``black_hole`` takes everything and passes nothing
on; ``cut_answers`` lets requests through and keeps the answers (what was sent lands, its sender never learns it);
``slow`` passes everything on late. What was held back passes when the wire is mended, also that of a process that has
died meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Literal

from kafka_addresses import INT32, correlation_of, request_head, with_ports

Wire = Literal["whole", "reset", "black_hole", "cut_answers", "slow"]
SLOW_S = 0.3
CONNECT_S = 5.0
LINGER_NOT = struct.pack("ii", 1, 0)
"""Closing with it sends a reset instead of a farewell."""


class NetworkProxy:
    """An async context manager that listens on a port of its own.

    Args:
        broker_port: where the broker listens on this host.
    """

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._wire: Wire = "whole"
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> NetworkProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self._end_connections()
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        """``host:port`` for the process behind it."""
        return f"127.0.0.1:{self.port}"

    async def set_wire(self, wire: Wire) -> None:
        """Cut or mend."""
        self._wire = wire
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if wire == "reset":
            await self._end_connections()

    async def _end_connections(self) -> None:
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self._wire != "reset":
                await self._connect(reader, writer)
        except asyncio.CancelledError:
            # Ours alone: a connection is cancelled to be cut, and asyncio would report its task as failed.
            pass
        finally:
            self._connections.discard(task)
            _reset(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            await self._whole("black_hole")
            async with asyncio.timeout(CONNECT_S):
                broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
            try:
                await self._pass_both_ways(reader, writer, broker_reader, broker_writer)
            finally:
                _reset(broker_writer)

    async def _pass_both_ways(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        broker_reader: asyncio.StreamReader,
        broker_writer: asyncio.StreamWriter,
    ) -> None:
        asked: dict[int, tuple[int, int]] = {}

        async def request(frame: bytes) -> bytes:
            await self._whole("black_hole")
            api_key, version, correlation = request_head(frame)
            asked[correlation] = api_key, version
            return frame

        async def answer(frame: bytes) -> bytes:
            await self._whole("black_hole", "cut_answers")
            api_key, version = asked.pop(correlation_of(frame), (-1, 0))
            return with_ports(frame, api_key, version, {self._broker_port: self.port})

        ways = {
            asyncio.ensure_future(self._pass_on(reader, broker_writer, request)),
            asyncio.ensure_future(self._pass_on(broker_reader, writer, answer)),
        }
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        changed: Callable[[bytes], Awaitable[bytes]],
    ) -> None:
        while True:
            head = await reader.readexactly(INT32.size)
            frame = await changed(await reader.readexactly(INT32.unpack(head)[0]))
            if self._wire == "slow":
                await asyncio.sleep(SLOW_S)
            writer.write(head + frame)
            await writer.drain()

    async def _whole(self, *cuts: Wire) -> None:
        while self._wire in cuts:
            await self._changed.wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
    transport = writer.transport
    transport.abort()
