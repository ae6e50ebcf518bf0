"""``rollstream policies``: what is stored, who needs it, and removing what nobody does."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rollstream.cli.topic_options import AsJson, Bootstrap, Prefix, kafka_settings
from rollstream.cli.topics import size
from rollstream.schemas.control import PolicyLease, PolicyVersion, WorkerStatus
from rollstream.trainers.policies import prune_policies
from rollstream.trainers.policy_collection import PolicyNeeds, held_by_workers, needed_by_workers
from rollstream.transport.control import ControlFollower
from rollstream.transport.policy_files import local_path
from rollstream.transport.policy_leases import leased_digests
from rollstream.transport.policy_storage import PolicyStorage, StoredPolicy
from rollstream.transport.settings import KafkaSettings

policies_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Root = Annotated[str, typer.Argument(help="Directory or fsspec URL below which policies are stored.")]


@dataclass(frozen=True)
class Users:
    """Who needs what, as `control` says."""

    announced: PolicyVersion | None
    needs: PolicyNeeds
    leased: frozenset[str]

    def of(self, policy: StoredPolicy) -> str:
        """In words, for the table."""
        words: list[str] = []
        if self.announced is not None and policy.manifest_sha256 == self.announced.manifest_sha256:
            words.append("announced")
        if policy.manifest_sha256 in self.leased:
            words.append("leased")
        if self.needs.holds(policy):
            words.append("held by a worker")
        return ", ".join(words)


@policies_app.command("list")
def list_command(root: Root, bootstrap: Bootstrap = None, prefix: Prefix = None, as_json: AsJson = False) -> None:
    """List the policies below a root, newest first, and who needs them."""
    kafka = kafka_settings(bootstrap, prefix)
    stored = PolicyStorage(_absolute(root)).list_policies()
    users = asyncio.run(_users(kafka))
    if as_json:
        print(json.dumps([_facts(policy, users) for policy in stored], indent=2))
        return
    table = Table("policy", "kind", "size", "needed", "where")
    for policy in stored:
        table.add_row(str(policy.identity), policy.kind, size(policy.size_bytes), users.of(policy), policy.uri)
    Console().print(table if stored else f"no policy is stored below {root}")


@policies_app.command("prune")
def prune_command(
    root: Root,
    bootstrap: Bootstrap = None,
    prefix: Prefix = None,
    keep: Annotated[int, typer.Option(min=1, help="So many of the newest stay.")] = 2,
    every: Annotated[int | None, typer.Option(min=1, help="Each version that is a multiple of it stays.")] = None,
    hold: Annotated[list[int] | None, typer.Option(help="A version that must stay, of a checkpoint perhaps.")] = None,
) -> None:
    """Remove the policies below a root that nobody needs."""
    kafka = kafka_settings(bootstrap, prefix)
    removed = asyncio.run(_prune(kafka, _absolute(root), keep, every, frozenset(hold or ())))
    for policy in removed:
        print(f"removed {policy.identity} ({size(policy.size_bytes)}) {policy.uri}")
    print(f"{len(removed)} removed, {size(sum(policy.size_bytes for policy in removed))} given back")


def _facts(policy: StoredPolicy, users: Users) -> dict[str, str | int]:
    return {
        "lineage": policy.identity.lineage,
        "version": policy.identity.version,
        "kind": policy.kind,
        "size_bytes": policy.size_bytes,
        "needed": users.of(policy),
        "uri": policy.uri,
    }


async def _prune(
    kafka: KafkaSettings, root: str, keep: int, every: int | None, versions: frozenset[int]
) -> list[StoredPolicy]:
    async with ControlFollower(kafka) as control:
        return await prune_policies(root, control, keep=keep, every=every, versions=versions)


async def _users(kafka: KafkaSettings) -> Users:
    async with ControlFollower(kafka) as control:
        now_s = time.time()
        workers = control.all(WorkerStatus).values()
        announced = control.latest(PolicyVersion)
        return Users(
            announced=announced[0] if announced else None,
            needs=PolicyNeeds(digests=needed_by_workers(workers, now_s), held=held_by_workers(workers, now_s)),
            leased=leased_digests(control.all(PolicyLease).values(), now_s),
        )


def _absolute(root: str) -> str:
    local = local_path(root)
    return root if local is None else str(Path(local).resolve())
