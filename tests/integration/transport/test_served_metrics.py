"""The metrics as Prometheus reads them."""

from __future__ import annotations

from urllib.error import URLError
from urllib.request import urlopen

import pytest

from rollstream.schemas.control import Pause
from rollstream.transport import metrics
from rollstream.transport.metrics import served_metrics
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings

pytestmark = pytest.mark.broker


def scrape(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode()


async def test_what_was_published_is_counted_and_served(kafka: KafkaSettings) -> None:
    async with Publisher(kafka) as publisher:
        for _ in range(3):
            await publisher.publish(Pause(is_paused=True), key="pause")
    with served_metrics(0) as port:
        page = scrape(port)

    topic = kafka.topic("control")
    assert f'rollstream_published_records_total{{topic="{topic}"}} 3.0' in page
    assert f'rollstream_publish_seconds_count{{topic="{topic}"}} 3.0' in page
    assert "rollstream_publishes_in_flight 0.0" in page


def test_the_port_is_closed_with_the_block() -> None:
    with served_metrics(0) as port:
        pass

    with pytest.raises(URLError):
        scrape(port)


def test_every_metric_carries_our_name() -> None:
    assert {family.name.split("_")[0] for family in metrics.REGISTRY.collect()} == {"rollstream"}
