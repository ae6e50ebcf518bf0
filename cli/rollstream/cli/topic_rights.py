"""``rollstream topics grant | grants | revoke``: what users may do with our topics and groups."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from rollstream.cli.topic_options import AsJson, Bootstrap, Prefix, kafka_settings
from rollstream.schemas.errors import SettingsError
from rollstream.transport import access_admin
from rollstream.transport.access_admin import Grant, check_principal, list_grants
from rollstream.transport.access_rules import AccessRule, Role, access_rules
from rollstream.transport.settings import KafkaSettings

DEFAULT_TOOLSET = "default"
EVERYBODY = "User:*"

Principal = Annotated[str, typer.Option(help="Whom, as Kafka names users: User:tools.")]
OnlyOf = Annotated[str | None, typer.Option("--principal", help="Of this one only.")]
OfRole = Annotated[Role, typer.Option(help="What the user runs.")]
Toolset = Annotated[str | None, typer.Option(help="Of a tool worker the one it serves, of a rollout worker it calls.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")]


def grant(
    principal: Principal,
    role: OfRole,
    toolset: Toolset = None,
    dry_run: DryRun = False,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Let a user do what a role needs, and nothing besides. Safe to repeat; says what else the user may do already."""
    kafka = kafka_settings(bootstrap, prefix)
    rules = _rules(role, kafka, toolset)
    check_principal(principal)
    if dry_run:
        return _say("would be granted to", principal, rules)
    added = asyncio.run(access_admin.grant(kafka, principal, rules))
    _say("granted to", principal, added)
    if not added:
        typer.echo(f"nothing to grant: {principal} has all {len(rules)} rights of a {role}")
    expected = {Grant(principal, rule) for rule in rules}
    concerning = [each for each in asyncio.run(list_grants(kafka)) if each.principal in (principal, EVERYBODY)]
    beyond = [each for each in concerning if each not in expected]
    if beyond:
        typer.echo(f"beyond those of a {role}, {principal} has:")
        Console().print(grant_table(beyond))


def revoke(
    principal: Principal,
    role: OfRole,
    toolset: Toolset = None,
    dry_run: DryRun = False,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
) -> None:
    """Take from a user what a role needs, also where another role of the same user needs it. Safe to repeat."""
    kafka = kafka_settings(bootstrap, prefix)
    rules = _rules(role, kafka, toolset)
    check_principal(principal)
    if dry_run:
        return _say("would be revoked from", principal, rules)
    removed = asyncio.run(access_admin.revoke(kafka, principal, rules))
    _say("revoked from", principal, removed)
    if not removed:
        typer.echo(f"nothing to revoke: {principal} has none of the {len(rules)} rights of a {role}")


def grants(
    principal: OnlyOf = None,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Show who may do what with our topics and groups, and with the cluster as a whole."""
    kafka = kafka_settings(bootstrap, prefix)
    found = asyncio.run(list_grants(kafka, principal=principal))
    if as_json:
        typer.echo(json.dumps([asdict(each) for each in found]))
    elif found:
        Console().print(grant_table(found))
    else:
        typer.echo(f"nothing is granted under {kafka.prefix!r}; `rollstream topics grant` does")


def grant_table(found: Sequence[Grant]) -> Table:
    """One row per right."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("principal", no_wrap=True)
    table.add_column("may")
    table.add_column("what")
    table.add_column("name", overflow="fold")
    table.add_column("from")
    for each in found:
        rule = each.rule
        name = f"{rule.name}*" if rule.pattern == "prefixed" else rule.name
        operation = rule.operation if each.permission == "allow" else f"not {rule.operation}"
        table.add_row(each.principal, operation, rule.resource, name, "anywhere" if each.host == "*" else each.host)
    return table


def _rules(role: Role, kafka: KafkaSettings, toolset: str | None) -> tuple[AccessRule, ...]:
    if role == "tool-worker" and toolset is None:
        if DEFAULT_TOOLSET not in kafka.toolsets:
            raise SettingsError(f"which toolset does the tool worker serve? --toolset, one of {sorted(kafka.toolsets)}")
        toolset = DEFAULT_TOOLSET
    return access_rules(role, kafka, toolset=toolset)


def _say(done: str, principal: str, rules: Sequence[AccessRule]) -> None:
    for rule in rules:
        typer.echo(f"{done} {principal}: {rule}")
