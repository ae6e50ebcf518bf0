"""Connections over a bridge of our own, whose other end says whatever a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("mcp")

from mcp.client._transport import TransportStreams

from rollstream.schemas.tools import ToolCall
from rollstream.tool_workers.functions import SessionKey, ToolError, declared_tool, tool
from rollstream.tool_workers.mcp_servers.bridge_wire import pumped
from rollstream.tool_workers.mcp_servers.connection import McpConnection
from rollstream.tool_workers.mcp_servers.mounts import SessionMount, SharedMount
from rollstream.tool_workers.mcp_servers.wires import (
    MAX_BYTES_PER_CALL,
    MAX_MESSAGE_BYTES,
    LineReader,
    McpServerLostError,
)
from rollstream.tool_workers.sandbox.replies import BridgeEnd, SandboxLostError
from rollstream.tool_workers.sessions import Run, SessionLedger

Answer = Callable[[dict[str, Any]], list[bytes]]


class ScriptedBridge:
    """Introduces itself; other requests are answered by a function."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self.heard: list[dict[str, Any]] = []
        self._something = asyncio.Condition()

    async def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Return when such a message has come, or fail."""
        async with asyncio.timeout(5), self._something:
            await self._something.wait_for(lambda: any(map(wanted, self.heard)))

    async def write(self, data: bytes) -> None:
        message = json.loads(data)
        async with self._something:
            self.heard.append(message)
            self._something.notify_all()
        if message.get("method") == "initialize":
            result = {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
            self._said.put_nowait(line_of({"id": message["id"], "result": result}))
        elif message.get("method") == "tools/call":
            for chunk in self._answer(message):
                self._said.put_nowait(chunk)

    async def read(self, *, timeout_s: float) -> bytes:
        async with asyncio.timeout(timeout_s):
            return await self._said.get()

    async def close_input(self) -> None:
        """Nothing comes after."""

    @property
    def complaint(self) -> str:
        return ""

    @property
    def end(self) -> BridgeEnd | None:
        return None


class ScriptedWire:
    def __init__(self, answer: Answer) -> None:
        self.bridge = ScriptedBridge(answer)
        self.lines = LineReader()
        self.complaint = ""

    def call_begins(self) -> None:
        self.lines.call_begins()

    @asynccontextmanager
    async def streams(self) -> AsyncGenerator[TransportStreams]:
        async with pumped(self.bridge, self.lines) as streams:
            yield streams


def line_of(message: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"


def text(message: dict[str, Any], said: str = "fine") -> bytes:
    return line_of({"id": message["id"], "result": {"content": [{"type": "text", "text": said}]}})


@asynccontextmanager
async def connected(answer: Answer) -> AsyncGenerator[tuple[McpConnection, ScriptedBridge]]:
    async with asyncio.TaskGroup() as group:
        wire = ScriptedWire(answer)
        connection = McpConnection("srv", wire)
        connection.start(group)
        await connection.wait_until_open(5)
        try:
            yield connection, wire.bridge
        finally:
            await connection.close()


async def test_junk_notifications_and_answers_to_nobody_are_passed_over() -> None:
    noise = [b"hello\n", b"\n", line_of({"method": "notifications/x"}), line_of({"id": 99, "result": {}}), b"[]\n"]
    async with connected(lambda message: [*noise, text(message)]) as (connection, _):
        assert (await connection.call("t", {}))["content"][0]["text"] == "fine"


async def test_an_answer_may_come_in_pieces() -> None:
    def pieces(message: dict[str, Any]) -> list[bytes]:
        whole = text(message, "\u00e4" * 50)
        return [whole[at : at + 7] for at in range(0, len(whole), 7)]

    async with connected(pieces) as (connection, _):
        assert (await connection.call("t", {}))["content"][0]["text"] == "\u00e4" * 50


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create", "roots/list", "tools/list"])
async def test_requests_of_the_server_are_refused(method: str) -> None:
    def ask_first(message: dict[str, Any]) -> list[bytes]:
        params: dict[str, Any] = {"messages": [], "maxTokens": 1, "message": "m", "requestedSchema": {"type": "object"}}
        return [line_of({"id": "mine", "method": method, "params": params}), text(message)]

    async with connected(ask_first) as (connection, bridge):
        await connection.call("t", {})
        await bridge.wait_for(lambda message: message.get("id") == "mine")
    (refusal,) = (message for message in bridge.heard if message.get("id") == "mine")
    assert "error" in refusal


async def test_an_error_of_the_server_is_for_the_model_and_the_connection_stays() -> None:
    def refuse_first(message: dict[str, Any]) -> list[bytes]:
        if message["params"]["name"] == "good":
            return [text(message)]
        return [line_of({"id": message["id"], "error": {"code": -1, "message": "a\u202eb"}})]

    async with connected(refuse_first) as (connection, _):
        with pytest.raises(ToolError, match=r"a\\u202eb"):
            await connection.call("bad", {})
        assert await connection.call("good", {})


async def test_a_call_that_is_given_up_is_cancelled_at_the_server() -> None:
    async with connected(lambda message: []) as (connection, bridge):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.call("t", {})
        (call,) = (message for message in bridge.heard if message.get("method") == "tools/call")
        await bridge.wait_for(lambda message: message.get("method") == "notifications/cancelled")
        (note,) = (message for message in bridge.heard if message.get("method") == "notifications/cancelled")
        assert note["params"]["requestId"] == call["id"]


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([b"x" * (MAX_MESSAGE_BYTES + 1)], "a line of more than"),
        ([b"y" * 1000 + b"\n"] * 101, "no messages"),
        ([line_of({"method": "n", "params": {"a": "z" * 100_000}})] * 50, f"more than {MAX_BYTES_PER_CALL} bytes"),
        ([line_of({"id": "q", "method": "ping"})] * 101, "requests of its own"),
        ([b""], "has ended"),
    ],
)
async def test_a_server_that_says_what_none_may_is_lost_at_once(chunks: list[bytes], told: str) -> None:
    async with connected(lambda message: chunks) as (connection, _):
        with pytest.raises(McpServerLostError, match=told):
            await connection.call("t", {})
        assert connection.is_over
        with pytest.raises(McpServerLostError, match=told):
            await connection.call("t", {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.from_regex(rb'\{"jsonrpc":"2.0",.{0,40}\}\n', fullmatch=True), max_size=8))
def test_no_bytes_of_a_server_do_more_than_lose_it(chunks: list[bytes]) -> None:
    async def one() -> None:
        async with connected(lambda message: [*chunks, b"\n", text(message)]) as (connection, _):
            try:
                async with asyncio.timeout(5):
                    result = await connection.call("t", {})
            except (McpServerLostError, ToolError):
                return
            assert isinstance(result["content"], list)

    asyncio.run(one())


@given(st.lists(st.binary(max_size=30)), st.integers(1, 7))
def test_lines_are_the_same_however_they_are_cut(parts: list[bytes], size: int) -> None:
    whole = b"\n".join(parts) + b"\n"
    reader = LineReader()
    found = [line for at in range(0, len(whole), size) for line in reader.feed(whole[at : at + size])]
    assert found == [line for line in whole.split(b"\n") if line.strip()]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_shared_server_is_started_again_at_growing_intervals() -> None:
    clock, starts = Clock(), 0

    def connect() -> McpConnection:
        nonlocal starts
        starts += 1
        return McpConnection("srv", ScriptedWire(lambda message: [b""]))

    async with asyncio.TaskGroup() as group:
        mount = SharedMount(group, connect, clock=clock)
        tried: list[int] = []
        for now in (0.0, 0.5, 1.0, 2.5, 3.0, 6.5, 7.0):
            clock.now = now
            with pytest.raises(McpServerLostError):
                await mount.call(None, "t", {}, start_s=5, timeout_s=5)
            tried.append(starts)
        assert tried == [1, 1, 2, 2, 3, 3, 4]
        await mount.close()


async def test_a_session_that_was_closed_gets_no_server_any_more() -> None:
    async with asyncio.TaskGroup() as group:
        mount = SessionMount(
            group, lambda: McpConnection("srv", ScriptedWire(lambda message: [text(message)])), max_sessions=4
        )
        assert await mount.call("a", "t", {}, start_s=5, timeout_s=5)
        assert len(mount) == 1
        mount.end_session("a")
        mount.end_session("b")
        for session in ("a", "b"):
            with pytest.raises(SandboxLostError, match="closed"):
                await mount.call(session, "t", {}, start_s=5, timeout_s=5)
        assert await mount.call(None, "t", {}, start_s=5, timeout_s=5)
        assert len(mount) == 0
        await mount.close()


def test_the_ledger_tells_of_every_incarnation_that_is_over() -> None:
    over: list[str] = []
    names = iter(["a", "b", "c"])
    ledger = SessionLedger(new_incarnation=lambda: next(names), remembered_results=1, on_close=over.append)
    for session in ("ended", "withdrawn", "kept"):
        call = ToolCall(
            call_id=session,
            session_id=session,
            turn=0,
            token=None,
            tool="t",
            arguments="{}",
            deadline=10.0,
            timeout_s=1.0,
            reply_topic="r",
            reply_partition=0,
        )
        run = ledger.admit(call, now=0.0)
        assert isinstance(run, Run)
        if session == "withdrawn":
            ledger.withdraw(call, run)
    ledger.close("ended")
    ledger.close("ended")
    assert over == ["b", "a"]


async def test_a_tool_is_told_which_session_calls_it() -> None:
    @tool
    async def whose(key: SessionKey) -> str:
        """Say whose."""
        return str(key.incarnation)

    declared = declared_tool(whose)
    assert declared is not None
    assert (declared.parameters["properties"], declared.is_stateful) == ({}, False)
    assert declared.session_key_parameter == "key"
