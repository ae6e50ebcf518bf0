"""The commands, called within the test's process, against the test's topics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from rollstream.cli.main import build_app
from rollstream.schemas.errors import RollstreamError
from rollstream.transport.settings import KafkaSettings


@dataclass(frozen=True)
class Called:
    """What a call ended with; ``error`` is what `rollstream` would print before its exit code 1."""

    exit_code: int
    output: str
    error: RollstreamError | None


@pytest.fixture
def dead_letters(kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Called]]:
    """``rollstream dead-letters …``."""
    monkeypatch.setenv("ROLLSTREAM_KAFKA__PARTITIONS", json.dumps(dict(kafka.partitions)))
    where = ("--bootstrap", kafka.bootstrap, "--prefix", kafka.prefix)

    async def call(*arguments: str) -> Called:
        app = build_app(["dead-letters"])
        result = await asyncio.to_thread(CliRunner().invoke, app, ["dead-letters", *arguments, *where])
        if result.exception is not None and not isinstance(result.exception, RollstreamError | SystemExit):
            raise result.exception
        error = result.exception if isinstance(result.exception, RollstreamError) else None
        return Called(result.exit_code, result.output, error)

    return call
