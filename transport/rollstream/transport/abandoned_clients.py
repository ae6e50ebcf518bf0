"""Ends at once, without waiting, what a Kafka client still holds when nobody will use it again.

Invariant: after ``abandon`` no connection of the client is open, none opens later, and its background tasks are
cancelled; its user may have been cancelled at any moment, also while the client started or stopped.

aiokafka closes everything at the end of an orderly ``stop``, and loses hold of what it has in three cases: ``stop`` is
cut off; ``start`` is cut off while the first connection of the client, which only that call holds, waits for its
answer; a task that survived a stop opens a connection after it.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# (aiokafka is only partly annotated, and there is no public way to what it holds)

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import aiokafka.client
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError, ProducerClosed

_bootstrap = AIOKafkaClient.bootstrap
_create_conn = aiokafka.client.create_conn
_bootstrapping: ContextVar[AIOKafkaClient | None] = ContextVar("_bootstrapping", default=None)
_opened: WeakKeyDictionary[AIOKafkaClient, WeakSet[AIOKafkaConnection]] = WeakKeyDictionary()
_abandoned: WeakSet[AIOKafkaClient] = WeakSet()

CONSUMER_TASKS = (
    ("_coordinator", "_coordination_task"),
    ("_coordinator", "_heartbeat_task"),
    ("_coordinator", "_commit_refresh_task"),
    ("_coordinator", "_reset_committed_task"),
    ("_fetcher", "_fetch_task"),
)


def own_connections() -> None:
    """From now on every client of this process is known to own the connections it opens. Safe to repeat."""
    AIOKafkaClient.bootstrap = _bootstrap_as_owner
    aiokafka.client.create_conn = _open_for_owner


def abandon(client: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient) -> None:
    """End what is left of a client, started or not, stopped or not; after an orderly stop there is nothing to do."""
    connections = client.client if isinstance(client, AIOKafkaProducer) else client._client
    _abandoned.add(connections)
    client._closed = True
    for task in (*_background(client), connections._sync_task):
        if task is not None:
            task.cancel()
    if isinstance(client, AIOKafkaProducer):
        _fail_queued(client)
    for connection in list(_opened.get(connections, ())):
        connection.close()


def _background(client: Any) -> Iterator[asyncio.Task[Any] | None]:
    if isinstance(client, AIOKafkaProducer):
        yield client._sender.sender_task
    elif isinstance(client, AIOKafkaConsumer):
        for part, task in CONSUMER_TASKS:
            yield getattr(getattr(client, part), task, None)
        yield from client._fetcher._pending_tasks if client._fetcher is not None else ()


def _fail_queued(producer: AIOKafkaProducer) -> None:
    """Without its sender nothing else would end those who wait for records that are still queued."""
    sender = producer._sender
    if sender.sender_task is not None:
        # It may stumble over a record that has failed already; what it would do then is done here.
        sender.sender_task.remove_done_callback(sender._fail_all)
        sender.sender_task.add_done_callback(lambda task: task.cancelled() or task.exception())
    producer._message_accumulator.fail_all(ProducerClosed())


async def _bootstrap_as_owner(self: AIOKafkaClient) -> None:
    before = _bootstrapping.set(self)
    try:
        await _bootstrap(self)
    finally:
        _bootstrapping.reset(before)


async def _open_for_owner(host: str, port: int, *, on_close: Any = None, **options: Any) -> AIOKafkaConnection:
    # All connections but the first one tell their client when they close.
    client = _bootstrapping.get() if on_close is None else on_close.__self__
    ended = KafkaConnectionError(f"No connection to {host}:{port}: the client that asks for it has ended")
    if client in _abandoned:
        raise ended
    connection = await _create_conn(host, port, on_close=on_close, **options)
    if client in _abandoned:
        connection.close()
        raise ended
    if client is not None:
        _opened.setdefault(client, WeakSet()).add(connection)
    return connection
