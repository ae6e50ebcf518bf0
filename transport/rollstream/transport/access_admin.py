"""Rights of users at the broker: granted, taken away, read back."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false
# (aiokafka's admin client knows the requests for rights, but has no public way to send them)

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest_v1
from aiokafka.protocol.api import Request

from rollstream.schemas.errors import SettingsError, TransientError
from rollstream.transport.access_rules import AccessRule, touches
from rollstream.transport.clients import admin_client
from rollstream.transport.settings import KafkaSettings

SHOWN_DEADLINE_S = 15.0
SHOWN_POLL_S = 0.05

ANY = 1
ANY_HOST = "*"
RESOURCES = {1: "any", 2: "topic", 3: "group", 4: "cluster", 5: "transactional-id", 6: "delegation-token", 7: "user"}
PATTERNS = {3: "literal", 4: "prefixed"}
OPERATIONS = {
    2: "all",
    3: "read",
    4: "write",
    5: "create",
    6: "delete",
    7: "alter",
    8: "describe",
    9: "cluster-action",
    10: "describe-configs",
    11: "alter-configs",
    12: "idempotent-write",
    13: "create-tokens",
    14: "describe-tokens",
    15: "two-phase-commit",
}
PERMISSIONS = {2: "deny", 3: "allow"}
ALLOW = 3

NO_AUTHORIZER = 54
NOT_PERMITTED = 31
_PRINCIPAL = re.compile(r"[A-Za-z]+:\S.*")


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """A rule the broker has for a principal, e.g. ``User:tools``."""

    principal: str
    rule: AccessRule
    permission: str = "allow"
    host: str = ANY_HOST


async def list_grants(kafka: KafkaSettings, *, principal: str | None = None) -> list[Grant]:
    """What concerns our topics and groups or the cluster as a whole, whoever has granted it; sorted.

    Args:
        kafka: cluster and prefix.
        principal: of this one only.

    Raises:
        SettingsError: this user may not look at rights, or the broker has none.
        TransientError: the broker does not answer.
    """
    async with admin_client(kafka) as admin:
        return await _grants(admin, kafka, principal)


async def grant(kafka: KafkaSettings, principal: str, rules: Iterable[AccessRule]) -> list[AccessRule]:
    """Add the rules that are missing; returns those, when the broker shows all. Safe to repeat.

    Raises:
        SettingsError: see ``list_grants``; the principal is no principal.
        TransientError: the broker does not answer, or does not show what it has accepted.
    """
    check_principal(principal)
    wanted = set(rules)
    async with admin_client(kafka) as admin:
        missing = sorted(wanted - _allowed(await _grants(admin, kafka, principal)))
        for rule in missing:
            answer: Any = await admin._send_request(CreateAclsRequest(*_numbers(rule, principal)))
            for code, message in answer.creation_responses:
                _check(f"grant {principal!r} {rule}", code, message, kafka)
        await _until_shown(admin, kafka, principal, present=wanted, absent=set())
    return missing


async def revoke(kafka: KafkaSettings, principal: str, rules: Iterable[AccessRule]) -> list[AccessRule]:
    """Take away the rules that are there; returns those, when the broker shows none. Safe to repeat.

    Raises:
        SettingsError: see ``list_grants``; the principal is no principal.
        TransientError: the broker does not answer, or shows what it has taken away.
    """
    check_principal(principal)
    unwanted = set(rules)
    async with admin_client(kafka) as admin:
        present = sorted(unwanted & _allowed(await _grants(admin, kafka, principal)))
        for rule in present:
            answer: Any = await admin._send_request(DeleteAclsRequest(*_numbers(rule, principal)))
            for code, message, *_ in answer.filter_responses:
                _check(f"revoke from {principal!r} {rule}", code, message, kafka)
        await _until_shown(admin, kafka, principal, present=set(), absent=unwanted)
    return present


def check_principal(principal: str) -> None:
    """Refuse what the broker would store and never match.

    Raises:
        SettingsError: it does not say of which kind it is.
    """
    if not _PRINCIPAL.fullmatch(principal):
        raise SettingsError(f"principal {principal!r} is not like 'User:tools': give kind and name")


class _DescribeAcls(Request[DescribeAclsRequest_v1]):
    """aiokafka would choose version 2, which it spells like version 1; brokers do not understand that."""

    API_KEY = 29

    def __init__(self, principal: str | None) -> None:
        self._principal = principal

    def build(self, request_struct_class: type[DescribeAclsRequest_v1]) -> DescribeAclsRequest_v1:
        """Any resource, name, pattern, host, operation and permission."""
        return request_struct_class(ANY, None, ANY, self._principal, None, ANY, ANY)


async def _grants(admin: AIOKafkaAdminClient, kafka: KafkaSettings, principal: str | None) -> list[Grant]:
    answer: Any = await admin._send_request(_DescribeAcls(principal))
    _check("show rights", answer.error_code, answer.error_message, kafka)
    found = [
        Grant(owner, rule, PERMISSIONS.get(permission, str(permission)), host)
        for resource, name, pattern, rights in answer.resources
        for owner, host, operation, permission in rights
        if touches(rule := _rule(resource, name, pattern, operation), kafka.prefix)
    ]
    return sorted(found)


async def _until_shown(
    admin: AIOKafkaAdminClient,
    kafka: KafkaSettings,
    principal: str,
    *,
    present: set[AccessRule],
    absent: set[AccessRule],
) -> None:
    """The controller has written it down before the brokers go by it."""
    try:
        async with asyncio.timeout(SHOWN_DEADLINE_S):
            while True:
                shown = _allowed(await _grants(admin, kafka, principal))
                if present <= shown and not absent & shown:
                    return
                await asyncio.sleep(SHOWN_POLL_S)
    except TimeoutError:
        raise TransientError(
            f"the rights of {principal!r} did not show within {SHOWN_DEADLINE_S:.0f} s; see the log of the broker, "
            "then repeat"
        ) from None


def _allowed(grants: Iterable[Grant]) -> set[AccessRule]:
    return {each.rule for each in grants if each.permission == "allow" and each.host == ANY_HOST}


def _rule(resource: int, name: str, pattern: int, operation: int) -> AccessRule:
    return AccessRule(
        RESOURCES.get(resource, str(resource)),
        name,
        PATTERNS.get(pattern, str(pattern)),
        OPERATIONS.get(operation, str(operation)),
    )


def _numbers(rule: AccessRule, principal: str) -> tuple[int, str, int, str, str, int, int]:
    return (
        _number(RESOURCES, rule.resource),
        rule.name,
        _number(PATTERNS, rule.pattern),
        principal,
        ANY_HOST,
        _number(OPERATIONS, rule.operation),
        ALLOW,
    )


def _number(names: Mapping[int, str], name: str) -> int:
    return next(number for number, each in names.items() if each == name)


def _check(action: str, code: int, message: str | None, kafka: KafkaSettings) -> None:
    if code == NO_AUTHORIZER:
        raise SettingsError(
            f"Kafka at {kafka.bootstrap!r} cannot {action}: it knows no rights and lets everybody do everything; set "
            "authorizer.class.name and super.users in its configuration, and a listener with login"
        )
    if code == NOT_PERMITTED:
        raise SettingsError(
            f"Kafka at {kafka.bootstrap!r} does not let {kafka.sasl_username!r} {action}: log in as one of its "
            "super.users, or as a user that may alter the cluster"
        )
    if code:
        raise SettingsError(f"Kafka at {kafka.bootstrap!r} refuses to {action} (error {code}): {message or '?'}")
