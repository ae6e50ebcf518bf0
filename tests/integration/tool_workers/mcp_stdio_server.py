"""An MCP server on standard streams with nothing but the standard library; its argument chooses how it misbehaves."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

MODE = sys.argv[1] if len(sys.argv) > 1 else "honest"
TEXT: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOLS: list[dict[str, Any]] = [
    {
        "name": "add",
        "description": "Count up\u202e.",
        "inputSchema": {
            "type": "object",
            "properties": {"by": {"type": "integer", "description": "How much\u200b."}},
            "required": ["by"],
            "additionalProperties": False,
        },
    },
    {"name": "show", "description": "Show a file or an attempt.", "inputSchema": TEXT},
    {"name": "act", "description": "Do something else.", "inputSchema": TEXT},
]
count = 0
cancelled: list[object] = []


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def attempt(what: str) -> str:
    try:
        if what == "network":
            with socket.create_connection(("1.1.1.1", 80), timeout=3):
                return "connected"
        with open(what) as file:
            return file.read()
    except OSError as error:
        return f"{type(error).__name__}"


def act(text: str, number: object) -> dict[str, Any] | None:
    if text == "die":
        os._exit(3)
    if text == "flood":
        sys.stdout.write("x" * 3_000_000 + "\n")
    if text == "much":
        for _ in range(200):
            say({"method": "notifications/message", "params": {"level": "info", "data": "y" * 100_000}})
    if text == "garbage":
        for _ in range(500):
            sys.stdout.write("{not json\n")
    if text == "ask":
        say({"id": "mine", "method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}})
        return {"content": [{"type": "text", "text": json.dumps(json.loads(sys.stdin.readline())["error"])}]}
    if text == "ask often":
        for turn in range(200):
            say({"id": f"mine {turn}", "method": "roots/list"})
    if text == "never":
        return None
    if text == "cancelled":
        return {"content": [{"type": "text", "text": f"{len(cancelled)}"}]}
    if text == "wrong":
        return {"content": "no list"}
    if text == "refuse":
        say({"id": number, "error": {"code": -32602, "message": "no\u202esuch thing"}})
        return None
    if text == "structure":
        return {"content": [{"type": "image", "data": "QUJD", "mimeType": "image/png"}], "structuredContent": {"a": 1}}
    if text == "secret":
        return {"content": [{"type": "text", "text": os.environ.get("TOKEN", "none")}]}
    return {"content": [{"type": "text", "text": f"cannot {text}"}], "isError": True}


def call(name: str, arguments: dict[str, Any], number: object) -> dict[str, Any] | None:
    global count
    if name == "add":
        count += arguments["by"]
        return {"content": [{"type": "text", "text": str(count)}]}
    if name == "show":
        return {"content": [{"type": "text", "text": attempt(arguments["text"])}]}
    return act(arguments["text"], number)


if MODE == "silent":
    time.sleep(600)
if MODE == "complaining":
    sys.exit("cannot find my settings")
for line in sys.stdin:
    request = json.loads(line)
    method, number, params = request.get("method"), request.get("id"), request.get("params", {})
    if method == "initialize":
        say(
            {
                "id": number,
                "result": {
                    "protocolVersion": params["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "test", "version": "1"},
                },
            }
        )
    elif method == "tools/list":
        named = [{**TOOLS[0], "name": "bad name"}] if MODE == "misnamed" else TOOLS
        say({"id": number, "result": {"tools": named}})
    elif method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    elif method == "tools/call":
        result = call(params["name"], params.get("arguments", {}), number)
        if result is not None:
            say({"id": number, "result": result})
