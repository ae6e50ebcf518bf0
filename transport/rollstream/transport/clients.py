"""Started Kafka clients with settings that are measured, not guessed, and errors that say what to do.

A start is tried until ``start_timeout_s`` has passed, with a fresh client each time: one whose start failed is broken.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
    for_code,
)

from rollstream.schemas.errors import SettingsError, TopicDeniedError, TransientError
from rollstream.transport.abandoned_clients import abandon, own_connections
from rollstream.transport.closed_connections import tell_closed_connections
from rollstream.transport.settings import KafkaSettings

logger = logging.getLogger(__name__)

tell_closed_connections()
own_connections()

Profile = Literal["durable", "rpc"]
"""``durable``: nothing acknowledged is lost, for trajectories, tasks, journal and tool calls. ``rpc``: milliseconds
matter, a lost record is asked for again, for the results of tool calls."""

MAX_REQUEST_BYTES = 64 * 1024 * 1024
MAX_BATCH_BYTES = 1024 * 1024
"""A record larger than a batch makes later ones of its partition wait unfairly: at 16 KiB, records of 20 KB took 400 ms
at p95, at 1 MiB 43 ms."""
DURABLE_REQUEST_TIMEOUT_MS = 120_000
RPC_REQUEST_TIMEOUT_MS = 15_000
MAX_POLL_INTERVAL_MS = 24 * 3600 * 1000
"""Members are slow on purpose: they poll only while they have free slots. Liveness is the session's business."""
METADATA_MAX_AGE_MS = 60_000
MISSING_TOPIC_GRACE_S = 3.0
"""A topic made just now may not be known to every broker yet."""
STOP_TIMEOUT_S = 5.0
FIRST_RETRY_S = 0.1
MAX_RETRY_S = 2.0

DENIED = (
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)


class _Client(Protocol):
    async def start(self) -> None: ...


C = TypeVar("C", bound=_Client)


async def start_producer(kafka: KafkaSettings, *, profile: Profile = "durable") -> AIOKafkaProducer:
    """A started producer; the caller stops it.

    ``durable``: idempotent and acknowledged by all in-sync replicas; an accepted record is retried without limit, but
    ``send`` itself raises ``KafkaTimeoutError`` after two minutes of outage. ``rpc``: acknowledged by the leader alone.

    Raises:
        TransientError: no broker answered within ``start_timeout_s``.
        SettingsError: the login or a permission was refused.
    """
    options: dict[str, Any] = {"enable_idempotence": True, "acks": "all"} if profile == "durable" else {"acks": 1}
    timeout_ms = DURABLE_REQUEST_TIMEOUT_MS if profile == "durable" else RPC_REQUEST_TIMEOUT_MS
    return await _start(
        kafka,
        lambda: AIOKafkaProducer(
            **_connection(kafka),
            **options,
            request_timeout_ms=timeout_ms,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
            linger_ms=0,
        ),
        stop_producer,
    )


async def start_consumer(
    kafka: KafkaSettings,
    *topics: str,
    group_id: str | None = None,
    instance_id: str | None = None,
    profile: Profile = "durable",
    auto_offset_reset: Literal["earliest", "latest", "none"] = "earliest",
    listener: ConsumerRebalanceListener | None = None,
) -> AIOKafkaConsumer:
    """A started consumer of ``topics`` (full names); the caller stops it. It never commits by itself.

    With ``group_id`` it has joined the group and holds its partitions; ``instance_id`` makes it a static member.
    Without a group it holds all partitions of the topics; with no topics none, for ``assign``.

    Raises:
        TransientError: no broker answered, or the group did not settle, within ``start_timeout_s``.
        SettingsError: a topic does not exist, or the login or a permission was refused.
    """
    await require_topics(kafka, *topics)

    def build() -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **_connection(kafka),
            group_id=group_id,
            group_instance_id=instance_id,
            auto_offset_reset=auto_offset_reset,
            enable_auto_commit=False,
            max_partition_fetch_bytes=(4 if profile == "durable" else 1) * 1024 * 1024,
            partition_assignment_strategy=(StickyPartitionAssignor,),
            session_timeout_ms=int(kafka.session_timeout_s * 1000),
            heartbeat_interval_ms=int(min(3.0, kafka.session_timeout_s / 6) * 1000),
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            rebalance_timeout_ms=60_000,
        )
        if topics:
            consumer.subscribe(topics, listener=listener)
        return consumer

    # Joining waits until a dead member has run out of its session.
    extra_s = kafka.session_timeout_s if group_id else 0.0
    return await _start(kafka, build, stop_consumer, extra_s=extra_s)


async def start_admin(kafka: KafkaSettings) -> AIOKafkaAdminClient:
    """A started admin client; the caller closes it.

    Raises:
        TransientError: no broker answered within ``start_timeout_s``.
        SettingsError: the login was refused.
    """
    return await _start(kafka, lambda: AIOKafkaAdminClient(**_connection(kafka)), stop_admin)


@asynccontextmanager
async def admin_client(kafka: KafkaSettings) -> AsyncGenerator[AIOKafkaAdminClient]:
    """``start_admin``, closed at the end; errors of Kafka inside become ours.

    Raises:
        TransientError: a request failed.
        SettingsError: a request was not permitted.
    """
    client = await start_admin(kafka)
    try:
        yield client
    except DENIED as error:
        raise denied(error, kafka) from error
    except KafkaError as error:
        raise TransientError(f"a request to Kafka at {kafka.bootstrap!r} failed: {error!r}; try again") from error
    finally:
        await stop_admin(client)


def denied(error: KafkaError, kafka: KafkaSettings) -> SettingsError:
    """What to tell when the cluster refused us; a TopicDeniedError where it is about a topic."""
    user = repr(kafka.sasl_username) if kafka.sasl_username else "an anonymous client"
    kind = TopicDeniedError if isinstance(error, TopicAuthorizationFailedError) else SettingsError
    return kind(
        f"Kafka at {kafka.bootstrap!r} refuses {user}: {type(error).__name__} {error}; grant the missing permission, "
        "or correct kafka.sasl_username and kafka.sasl_password"
    )


def unreachable(error: BaseException | None, kafka: KafkaSettings, waited_s: float) -> TransientError:
    """What to tell when no connection stood in time."""
    checks = "check that the broker runs (`rollstream broker status`) and that kafka.bootstrap is its address"
    if kafka.security_protocol != "PLAINTEXT":
        checks += "; kafka.security_protocol, user and password too: a refused login looks the same from here"
    return TransientError(
        f"no working connection to Kafka at {kafka.bootstrap!r} within {waited_s:.0f} s ({error!r}); {checks}"
    )


def _connection(kafka: KafkaSettings) -> dict[str, Any]:
    password = kafka.sasl_password
    return {
        "bootstrap_servers": [address.strip() for address in kafka.bootstrap.split(",")],
        "client_id": "rollstream",
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "security_protocol": kafka.security_protocol,
        "ssl_context": _ssl_context(kafka) if kafka.security_protocol.endswith("SSL") else None,
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": password.get_secret_value() if password else None,
    }


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file)
        if kafka.ssl_cert_file is not None:
            context.load_cert_chain(kafka.ssl_cert_file, kafka.ssl_key_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the certificates of kafka cannot be loaded ({error}); check ssl_ca_file {str(kafka.ssl_ca_file)!r}, "
            f"ssl_cert_file {str(kafka.ssl_cert_file)!r} and ssl_key_file {str(kafka.ssl_key_file)!r}"
        ) from error
    return context


async def _start(
    kafka: KafkaSettings, build: Callable[[], C], stop: Callable[[C], Awaitable[None]], *, extra_s: float = 0.0
) -> C:
    allowed_s = kafka.start_timeout_s + extra_s
    deadline = time.monotonic() + allowed_s
    retry_s = FIRST_RETRY_S
    failure: BaseException | None = None
    while (left_s := deadline - time.monotonic()) > 0:
        client = build()
        started = False
        try:
            async with asyncio.timeout(left_s):
                await client.start()
                # A consumer whose background task has not run yet cancels whoever stops it.
                await asyncio.sleep(0)
            started = True
            return client
        except DENIED as error:
            raise denied(error, kafka) from error
        except (KafkaError, OSError) as error:  # a TimeoutError is an OSError
            if failure is None:
                logger.warning("no connection to Kafka at %s yet: %r", kafka.bootstrap, error)
            if failure is None or isinstance(error, KafkaConnectionError):
                failure = error
        finally:
            if not started:
                await stop(client)
        await asyncio.sleep(max(0.0, min(retry_s, deadline - time.monotonic())))
        retry_s = min(2 * retry_s, MAX_RETRY_S)
    raise unreachable(failure, kafka, allowed_s) from failure


async def stop_quietly(stopping: Awaitable[None], *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop a client that is of no more use; what goes wrong or takes too long on the way does not matter.

    It is awaited in a task of its own: a client that cancels itself while it stops must not cancel the caller.
    """

    async def stop() -> None:
        with suppress(TimeoutError, KafkaError, OSError):
            async with asyncio.timeout(timeout_s):
                await stopping

    async with asyncio.TaskGroup() as group:
        group.create_task(stop())


async def stop_consumer(consumer: AIOKafkaConsumer, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop a consumer, leaving its group; never raises, and returns within about twice ``timeout_s``.

    With a broker that is away, the consumer's own ``stop`` ends in the cancellation of its pending fetches and leaves
    its connections open; so does a caller that is cancelled meanwhile. Nothing of it is left in any case.
    """
    try:
        await stop_quietly(consumer.stop(), timeout_s=timeout_s)
    finally:
        abandon(consumer)
    await stop_quietly(consumer._client.close(), timeout_s=timeout_s)  # pyright: ignore[reportPrivateUsage]  -- no public way


async def stop_producer(producer: AIOKafkaProducer, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop a producer; never raises, and returns within about twice ``timeout_s``, its connections closed.

    With a broker that is away or slow, the producer's own ``stop`` waits for what is in flight and is cut off there;
    a caller that is cancelled meanwhile cuts it off, too. Nothing of it is left in any case.
    """
    try:
        await stop_quietly(producer.stop(), timeout_s=timeout_s)
    finally:
        abandon(producer)
    await stop_quietly(producer.client.close(), timeout_s=timeout_s)


async def stop_admin(client: AIOKafkaAdminClient, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Stop an admin client; never raises, and returns within about ``timeout_s``. Nothing of it is left."""
    try:
        await stop_quietly(client.close(), timeout_s=timeout_s)
    finally:
        abandon(client)


async def require_topics(kafka: KafkaSettings, *topics: str) -> None:
    """A group consumer of a missing topic would wait for ever, an assigned one would read nothing.

    Raises:
        SettingsError: a topic (full name) does not exist.
        TopicDeniedError: a topic may not be looked at.
        TransientError: no broker answered within ``start_timeout_s``.
    """
    if not topics:
        return
    async with admin_client(kafka) as admin:
        deadline = time.monotonic() + MISSING_TOPIC_GRACE_S
        while True:
            described = await admin.describe_topics(list(topics))
            errors = {topic["topic"]: for_code(topic["error_code"]) for topic in described if topic["error_code"]}
            refused = [error for error in errors.values() if error in DENIED]
            if refused:
                raise denied(refused[0](", ".join(sorted(errors))), kafka)
            if not errors:
                return
            if time.monotonic() > deadline:
                raise SettingsError(
                    f"topics {sorted(errors)} do not exist on {kafka.bootstrap!r}; `rollstream topics apply` makes "
                    "them, or correct kafka.prefix"
                )
            await asyncio.sleep(MAX_RETRY_S / 10)
