"""Where Kafka is, how to log in, and which topics are ours."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from rollstream.schemas.errors import SettingsError
from rollstream.transport.topics import DEFAULT_PREFIX, TopicDeclaration, topic_name, topic_table

_TOPIC_CHARACTERS = re.compile(r"[A-Za-z0-9._-]*")
_MAX_PREFIX_CHARS = 128
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:,\[\]]+):(\d{1,5})")


class KafkaSettings(BaseModel):
    """One Kafka cluster and one prefix in it. Runs with different prefixes share a cluster without meeting."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bootstrap: str
    """Addresses of brokers: ``host:port``, several separated by commas."""
    prefix: str = DEFAULT_PREFIX
    """What the name of each topic and consumer group begins with."""
    toolsets: tuple[str, ...] = ("default",)
    """Each toolset has its own ``tool-calls.<toolset>`` topic and tool workers."""
    partitions: dict[str, int] = Field(default_factory=dict)
    """Partitions by short topic name, where the default is not wanted, e.g. ``tasks = 32``."""
    replication_factor: int = Field(default=1, ge=1)
    """Copies of each partition. Three on a cluster that must survive the loss of a broker."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How to talk to the brokers."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How to log in, with one of the SASL protocols."""
    sasl_username: str | None = None
    """User to log in as."""
    sasl_password: SecretStr | None = None
    """Password of that user; better set in the environment than in a file."""
    ssl_ca_file: Path | None = None
    """Certificates to trust, with one of the SSL protocols; those of the system by default."""
    ssl_cert_file: Path | None = None
    """Certificate of this client, where brokers ask for one."""
    ssl_key_file: Path | None = None
    """Private key of that certificate."""
    session_timeout_s: float = Field(default=30.0, ge=1.0)
    """A worker that is silent this long has lost its partitions. A static member may restart within it for free."""
    start_timeout_s: float = Field(default=30.0, gt=0)
    """Time within which a connection must stand, when a process starts."""

    @field_validator("bootstrap")
    @classmethod
    def _is_address_list(cls, bootstrap: str) -> str:
        for address in bootstrap.split(","):
            matched = _ADDRESS.fullmatch(address.strip())
            if matched is None or not 0 < int(matched[2]) < 65536:
                raise ValueError(f"bootstrap address {address!r} is not host:port")
        return bootstrap

    @field_validator("prefix", "toolsets")
    @classmethod
    def _makes_topic_names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for text in (value,) if isinstance(value, str) else value:
            if not _TOPIC_CHARACTERS.fullmatch(text) or len(text) > _MAX_PREFIX_CHARS:
                raise ValueError(
                    f"{text!r} cannot be part of a topic name: letters, digits, '.', '_', '-', at most "
                    f"{_MAX_PREFIX_CHARS}"
                )
        return value

    @model_validator(mode="after")
    def _is_consistent(self) -> KafkaSettings:
        if not all(self.toolsets) or len(set(self.toolsets)) != len(self.toolsets):
            raise ValueError(f"toolsets {self.toolsets!r}: names must be distinct and not empty")
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"security_protocol {self.security_protocol!r} needs sasl_username and sasl_password")
        if self.ssl_key_file is not None and self.ssl_cert_file is None:
            raise ValueError("ssl_key_file is set, ssl_cert_file is not: a key is of no use without its certificate")
        _ = self.topics
        return self

    @cached_property
    def topics(self) -> dict[str, TopicDeclaration]:
        """The declared topics by short name."""
        return topic_table(
            self.prefix,
            partitions=self.partitions,
            toolsets=self.toolsets,
            replication_factor=self.replication_factor,
        )

    def topic(self, short: str) -> str:
        """The full name of a topic, e.g. of ``tasks`` or ``tool-calls.default``.

        Raises:
            SettingsError: no such topic is declared.
        """
        if short not in self.topics:
            hint = "; add the toolset to kafka.toolsets" if short.startswith("tool-calls.") else ""
            raise SettingsError(f"topic {short!r} is not declared, the topics are {sorted(self.topics)}{hint}")
        return topic_name(self.prefix, short)

    def group(self, short: str) -> str:
        """The full name of a consumer group: ``rollout-workers`` becomes ``rollstream.rollout-workers``."""
        return f"{self.prefix}{short}"
