"""A broker at which one must log in, and where nobody but the super user may do anything without being granted it.

For trying out rights. Users log in with SCRAM-SHA-512; the node itself logs in to its controller as the super user.
Passwords lie in the data folder, which only its owner can enter, and are on no command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from rollstream.schemas.errors import SettingsError
from rollstream.transport.local_broker.configuration import Listeners

_SAFE = re.compile(r"[A-Za-z0-9._-]+")
"""Stands in files of three syntaxes as it is."""
_KAFKA = "org.apache.kafka"
_SCRAM_LOGIN = f"{_KAFKA}.common.security.scram.ScramLoginModule"
_PLAIN_LOGIN = f"{_KAFKA}.common.security.plain.PlainLoginModule"


@dataclass(frozen=True)
class BrokerUsers:
    """Who may log in.

    Raises:
        SettingsError: the super user has no password, or a name or password has odd characters.
    """

    super_user: str
    """Name of the one that may do everything."""
    passwords: Mapping[str, str] = field(repr=False)
    """Of all users by name, the super user among them."""

    def __post_init__(self) -> None:
        if self.super_user not in self.passwords:
            raise SettingsError(f"super user {self.super_user!r} has no password: add it to passwords")
        for name, password in self.passwords.items():
            if not (_SAFE.fullmatch(name) and _SAFE.fullmatch(password)):
                raise SettingsError(f"user {name!r}: name and password must be letters, digits, '.', '_', '-'")

    def properties(self, listeners: Listeners) -> dict[str, str]:
        """What replaces and completes the settings of a broker without users."""
        login = f'username="{self.super_user}" password="{self.passwords[self.super_user]}"'
        known = f'user_{self.super_user}="{self.passwords[self.super_user]}"'
        return {
            "listeners": f"SASL_PLAINTEXT://{listeners.host}:{listeners.broker_port},"
            f"CONTROLLER://{listeners.host}:{listeners.controller_port}",
            "advertised.listeners": f"SASL_PLAINTEXT://{listeners.host}:{listeners.broker_port}",
            "listener.security.protocol.map": "CONTROLLER:SASL_PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT",
            "inter.broker.listener.name": "SASL_PLAINTEXT",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "sasl.mechanism.controller.protocol": "PLAIN",
            "listener.name.sasl_plaintext.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config": f"{_SCRAM_LOGIN} required {login};",
            "listener.name.controller.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.controller.plain.sasl.jaas.config": f"{_PLAIN_LOGIN} required {login} {known};",
            "authorizer.class.name": f"{_KAFKA}.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:{self.super_user}",
            "allow.everyone.if.no.acl.found": "false",
        }

    def formatter_arguments(self) -> list[str]:
        """What makes Kafka's formatter write the users into a fresh log folder."""
        return [
            argument
            for name, password in self.passwords.items()
            for argument in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={password}]")
        ]
