"""Servers in sandboxes and behind HTTP, honest ones and others, through the path a worker's calls take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rollstream.cli.tools import specs_of
from rollstream.schemas.errors import SettingsError
from rollstream.schemas.tools import SessionEnd, ToolCall, ToolResult
from rollstream.tool_workers.mcp_servers.mounting import McpServers, mounted_servers
from rollstream.tool_workers.mcp_servers.settings import McpServerSettings
from rollstream.tool_workers.sandbox.levels import build_spawner
from rollstream.tool_workers.sandbox.sandbox import SandboxFactory
from rollstream.tool_workers.service import run_tool_worker
from rollstream.tool_workers.settings import MIB, SandboxSettings, ToolWorkerSettings
from rollstream.tool_workers.tool_runner import ToolRunner
from rollstream.transport.publisher import Publisher
from rollstream.transport.settings import KafkaSettings
from rollstream.transport.tool_client import ToolClient

pytest.importorskip("mcp")

import uvicorn
from mcp.server.mcpserver import Context, MCPServer

SERVER = Path(__file__).parent / "mcp_stdio_server.py"
LIMITS = SandboxSettings(memory_bytes=256 * MIB, processes=32)


def honest(mode: str = "honest", **changes: Any) -> McpServerSettings:
    command = ("/usr/bin/python3", f"/workspace/{SERVER.name}", mode)
    fields: dict[str, Any] = {"command": command, "files": SERVER, "start_timeout_s": 15.0, "timeout_s": 10.0}
    return McpServerSettings(**(fields | changes))


@asynccontextmanager
async def mounted(server: McpServerSettings, secrets: Mapping[str, str] | None = None) -> AsyncGenerator[McpServers]:
    async with (
        SandboxFactory(build_spawner("bwrap", LIMITS), LIMITS, max_running_programs=4) as factory,
        mounted_servers({"srv": server}, factory, secrets or {}) as servers,
    ):
        yield servers


async def ask(servers: McpServers, tool_name: str, incarnation: str | None = "first", **arguments: Any) -> ToolResult:
    """One call, as the handler makes it."""
    tool = next(tool for tool in servers.tools if tool.name == tool_name)
    call = ToolCall(
        call_id="c",
        session_id=incarnation,
        trajectory_id="t",
        turn=0,
        token=None,
        tool=tool_name,
        arguments="{}",
        reply_topic="r",
        reply_partition=0,
        timeout_s=10.0,
        deadline=4e9,
    )
    runner = ToolRunner(worker_id="w", max_output_chars=4000)
    parsed = tool.parse(msgspec.json.encode(arguments).decode())
    return await runner.run(tool, call, parsed, None, queue_s=0.0, incarnation=incarnation)


@pytest.mark.sandbox
async def test_a_server_in_a_sandbox_keeps_state_for_each_session() -> None:
    async with mounted(honest()) as servers:
        assert [tool.name for tool in servers.tools] == ["srv_add", "srv_show", "srv_act"]
        add = servers.tools[0]
        assert (add.is_stateful, add.is_idempotent, add.needs_sandbox) == (True, True, False)
        assert add.description == "Count up\\u202e."
        assert add.parameters["properties"]["by"]["description"] == "How much\\u200b."
        assert [(await ask(servers, "srv_add", by=2)).content for _ in range(2)] == ["2", "4"]
        assert (await ask(servers, "srv_add", "second", by=5)).content == "5"
        servers.end_session("first")
        lost = await ask(servers, "srv_add", by=1)
        assert lost.status == "session_lost"
        assert (await ask(servers, "srv_add", "second", by=5)).content == "10"
        assert (await ask(servers, "srv_add", None, by=1)).content == "1"


@pytest.mark.sandbox
async def test_a_server_gets_neither_the_network_nor_files_of_the_machine() -> None:
    async with mounted(honest()) as servers:
        for what in ("network", "/etc/shadow", str(SERVER), "/proc/1/environ"):
            assert (await ask(servers, "srv_show", text=what)).content.endswith("Error")
        assert "mcp_stdio_server" in (await ask(servers, "srv_show", text="/proc/self/cmdline")).content


@pytest.mark.sandbox
async def test_answers_become_text_and_faults_of_the_caller_become_errors() -> None:
    async with mounted(honest()) as servers:
        failed = await ask(servers, "srv_act", text="fly")
        assert (failed.status, failed.content) == ("error", "Error: cannot fly")
        refused = await ask(servers, "srv_act", text="refuse")
        assert (refused.status, refused.content) == ("error", "Error: no\\u202esuch thing (code -32602)")
        shown = await ask(servers, "srv_act", text="structure")
        assert (shown.status, shown.content) == ("ok", '[image, image/png, 3 bytes: not shown]\n{"a": 1}')
        asked = json.loads((await ask(servers, "srv_act", text="ask")).content)
        assert asked["code"] < 0


@pytest.mark.sandbox
@pytest.mark.parametrize("how", ["die", "flood", "much", "garbage", "ask often", "wrong"])
async def test_a_server_that_dies_or_says_what_none_may_is_a_lost_session(how: str) -> None:
    async with mounted(honest()) as servers:
        lost = await ask(servers, "srv_act", text=how)
        assert lost.status == "session_lost", lost.content
        again = await ask(servers, "srv_add", by=1)
        assert again.status == "session_lost"
        servers.end_session("first")
        assert (await ask(servers, "srv_add", "second", by=1)).content == "1"


@pytest.mark.sandbox
async def test_a_call_without_an_answer_times_out_and_the_server_is_told() -> None:
    async with mounted(honest(timeout_s=0.5)) as servers:
        await ask(servers, "srv_add", by=1)
        late = await ask(servers, "srv_act", text="never")
        assert (late.status, late.content) == ("timeout", "Error: timed out after 0.5 s")
        assert (await ask(servers, "srv_act", text="cancelled")).content == "1"


@pytest.mark.sandbox
async def test_a_server_for_the_whole_worker_is_started_again() -> None:
    async with mounted(honest(per="worker")) as servers:
        assert not servers.tools[0].is_stateful
        assert (await ask(servers, "srv_add", None, by=1)).content == "1"
        assert (await ask(servers, "srv_add", None, by=1)).content == "2"
        assert (await ask(servers, "srv_act", None, text="die")).status == "worker_error"
        assert (await ask(servers, "srv_add", None, by=1)).content == "1"
        ends = [(await ask(servers, "srv_act", None, text="die")).status for _ in range(2)]
        assert ends == ["worker_error", "worker_error"]
        assert "tried again in" in (await ask(servers, "srv_add", None, by=1)).content


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("silent", "has not introduced itself within 1 s"),
        ("complaining", "cannot find my settings"),
        ("misnamed", "'bad name'"),
    ],
)
async def test_a_server_that_cannot_be_mounted_is_named_with_its_reason(mode: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        async with mounted(honest(mode, start_timeout_s=1.0 if mode == "silent" else 15.0)):
            pass


@pytest.mark.sandbox
async def test_sessions_wait_for_a_place_and_give_up_as_infrastructure() -> None:
    async with mounted(honest(max_sessions=1, start_timeout_s=2.0)) as servers:
        assert (await ask(servers, "srv_add", "one", by=1)).content == "1"
        full = await ask(servers, "srv_add", "two", by=1)
        assert full.status == "session_lost"
        servers.end_session("two")
        waiting = asyncio.create_task(ask(servers, "srv_add", "three", by=3))
        await asyncio.sleep(0)
        servers.end_session("one")
        assert (await waiting).content == "3"


@pytest.mark.broker
@pytest.mark.sandbox
async def test_a_worker_serves_a_mounted_server_until_its_session_ends(kafka: KafkaSettings) -> None:
    settings = ToolWorkerSettings(tools=("calculator", "mcp:srv"), mcp={"srv": honest()}, worker_id="w")
    stop = asyncio.Event()

    def add(turn: int, token: str | None, session: str = "s") -> ToolCall:
        return ToolCall(
            call_id=f"{session}{turn}",
            session_id=session,
            turn=turn,
            token=token,
            tool="srv_add",
            arguments='{"by": 2}',
            reply_topic="",
            reply_partition=0,
            timeout_s=10.0,
            deadline=time.time() + 60,
        )

    async with asyncio.TaskGroup() as group:
        group.create_task(run_tool_worker(settings, kafka, stop))
        async with ToolClient(kafka, worker_id="a") as client, Publisher(kafka, profile="rpc") as publisher:
            first = await client.call(add(0, None), "default")
            second = await client.call(add(1, first.token), "default")
            assert [first.content, second.content] == ["2", "4"]
            wrong = msgspec.structs.replace(add(2, second.token), arguments='{"by": "2"}')
            assert (await client.call(wrong, "default")).status == "invalid_arguments"
            end = SessionEnd(session_id="s")
            await publisher.publish(end, key="s", topic=kafka.topic("tool-calls.default"), deadline_s=10)
            assert (await client.call(add(3, second.token), "default")).status == "session_lost"
            assert (await client.call(add(0, None, "other"), "default")).content == "2"
        stop.set()


@pytest.mark.sandbox
async def test_the_tools_of_a_server_are_exported_for_producers() -> None:
    server = honest(prefix="", tools=("add",), per="worker")
    specs = await specs_of(ToolWorkerSettings(tools=("calculator", "mcp:srv"), mcp={"srv": server}))
    assert [(spec.name, spec.is_stateful) for spec in specs] == [("calculator", False), ("add", False)]


@asynccontextmanager
async def http_server() -> AsyncGenerator[str]:
    """The library's own server, on loopback."""
    server = MCPServer("there")

    @server.tool()
    def greet(name: str, context: Context[Any, Any]) -> str:
        """Greet somebody."""
        sent = context.headers or {}
        return f"hello {name}, you sent {sent.get('authorization')}"

    @server.tool()
    def big(size: int) -> str:
        """Say a lot."""
        return "z" * size

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = server.streamable_http_app(json_response=True)
        run = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", ws="none"))
        serving = asyncio.create_task(run.serve(sockets=[listener]))
        while not run.started:  # noqa: ASYNC110 -- it has a flag and no event
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            run.should_exit = True
            await serving


async def test_a_server_behind_http_gets_headers_out_of_secrets_and_repeats_none_to_the_model() -> None:
    async with http_server() as url:
        server = McpServerSettings(url=url, headers={"Authorization": "KEY"}, timeout_s=10.0)
        async with mounted_servers({"srv": server}, None, {"KEY": "Bearer 123456"}) as servers:
            assert [tool.is_idempotent for tool in servers.tools] == [False, False]
            greeted = await ask(servers, "srv_greet", None, name="Ada")
            assert (greeted.status, greeted.content) == ("ok", "hello Ada, you sent [secret KEY]")
            assert (await ask(servers, "srv_big", None, size=2_000_000)).status == "outcome_unknown"
            assert (await ask(servers, "srv_greet", None, name="Bob")).status == "ok"


async def test_a_server_that_redirects_is_not_followed() -> None:
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 307 Elsewhere\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(SettingsError, match="redirect"):
            async with mounted_servers({"srv": McpServerSettings(url=f"http://127.0.0.1:{port}/mcp")}, None, {}):
                pass
    assert len(asked) == 1
