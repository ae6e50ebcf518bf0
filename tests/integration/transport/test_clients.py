"""Starting clients: what cannot work says so, and what will work soon is waited for."""
# pyright: reportUnknownMemberType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.clients import admin_client, start_admin, start_consumer, start_producer
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
from rollstream.transport.local_broker.ports import free_ports
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker


async def test_without_a_group_a_consumer_holds_all_partitions_at_once(kafka: KafkaSettings) -> None:
    topic = kafka.topic("tasks")
    consumer = await start_consumer(kafka, topic)

    assert consumer.assignment() == {TopicPartition(topic, partition) for partition in range(4)}
    await consumer.stop()


async def test_with_a_group_a_consumer_holds_its_partitions_at_once(kafka: KafkaSettings) -> None:
    consumer = await start_consumer(kafka, kafka.topic("tasks"), group_id=kafka.group("g"), instance_id="i1")

    assert len(consumer.assignment()) == 4
    await consumer.stop()


async def test_clients_can_be_stopped_right_after_they_were_started(kafka: KafkaSettings) -> None:
    await (await start_consumer(kafka)).stop()
    await (await start_consumer(kafka, kafka.topic("tasks"))).stop()
    await (await start_producer(kafka, profile="rpc")).stop()
    await (await start_admin(kafka)).close()


@pytest.mark.parametrize("group_id", [None, "g"])
async def test_a_missing_topic_is_named_with_the_remedy(kafka: KafkaSettings, group_id: str | None) -> None:
    missing = f"{kafka.prefix}nowhere"
    async with asyncio.timeout(20):
        with pytest.raises(SettingsError, match=rf"'{missing}'.*rollstream topics apply"):
            await start_consumer(kafka, missing, group_id=group_id)


async def test_a_login_where_none_is_expected_hints_at_user_and_password(broker: str) -> None:
    kafka = KafkaSettings.model_validate(
        {
            "bootstrap": broker,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_username": "u",
            "sasl_password": "p",
            "start_timeout_s": 1,
        }
    )
    with pytest.raises(TransientError, match="security_protocol, user and password"):
        await start_producer(kafka)


async def test_certificates_that_are_not_there_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    kafka = KafkaSettings(bootstrap="127.0.0.1:1", security_protocol="SSL", ssl_ca_file=missing)
    with pytest.raises(SettingsError, match=str(missing)):
        await start_producer(kafka)


async def test_a_request_that_fails_is_an_error_of_ours(kafka: KafkaSettings) -> None:
    from aiokafka.admin import NewPartitions

    with pytest.raises(TransientError, match="InvalidPartitionsError"):
        async with admin_client(kafka) as admin:
            await admin.create_partitions({kafka.topic("tasks"): NewPartitions(1)})


async def test_a_broker_that_comes_up_later_is_waited_for(tmp_path: Path) -> None:
    [port, _] = free_ports(2)
    kafka = KafkaSettings(bootstrap=f"127.0.0.1:{port}", start_timeout_s=60)
    local = LocalBroker(BrokerSettings(data_dir=tmp_path / "broker", source="jars", port=port))
    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(start_producer(kafka))
        await asyncio.to_thread(local.start)
    try:
        await starting.result().stop()
    finally:
        await asyncio.to_thread(local.stop)
