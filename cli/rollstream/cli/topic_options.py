"""Options that all commands about topics have."""

from __future__ import annotations

from typing import Annotated

import typer

from rollstream.cli.settings import load_settings
from rollstream.transport.settings import KafkaSettings

Bootstrap = Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")]
Prefix = Annotated[str | None, typer.Option(help="Prefix of all topics.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output.")]


def kafka_settings(bootstrap: str | None, prefix: str | None) -> KafkaSettings:
    """The settings of Kafka with these options in them.

    Raises:
        SettingsError: no broker is known, or a setting is wrong.
    """
    return load_settings({"kafka": {"bootstrap": bootstrap, "prefix": prefix}}).kafka
