from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from rollstream.cli.command_line import CommandLine
from rollstream.cli.produce import with_tool_specs
from rollstream.cli.settings import load_settings, shown_settings
from rollstream.cli.tools import read_specs, specs_of
from rollstream.producers.settings import ProducerSettings
from rollstream.schemas.errors import SettingsError
from rollstream.tool_workers.settings import ToolWorkerSettings


async def test_the_tools_of_a_worker_are_listed_without_starting_sandboxes() -> None:
    specs = await specs_of(ToolWorkerSettings(tools=("calculator", "bash"), toolset="mine"))
    assert [(spec.name, spec.toolset, spec.is_stateful) for spec in specs] == [
        ("calculator", "mine", False),
        ("bash", "mine", True),
    ]


async def test_a_producer_takes_exported_tools_as_they_are(tmp_path: Path) -> None:
    specs = await specs_of(ToolWorkerSettings(tools=("bash",), toolset="mine"))
    file = tmp_path / "specs.json"
    file.write_bytes(msgspec.json.encode(specs))
    producer = ProducerSettings(source="data.jsonl", run_id="r", tools=(str(file), "calculator"))
    taken = with_tool_specs(producer, toolset="other").tools
    assert taken == (*specs, *taken[1:])
    assert [getattr(spec, "toolset", None) for spec in taken] == ["mine", "other"]


@pytest.mark.parametrize("content", [b"{}", b"[{}]", b"\xff", b"[1"])
def test_a_file_that_holds_no_tools_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "specs.json"
    file.write_bytes(content)
    with pytest.raises(SettingsError, match="holds no tools"):
        read_specs(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_specs(tmp_path / "missing.json")


def test_a_producer_is_told_that_servers_are_mounted_by_workers() -> None:
    producer = ProducerSettings(source="data.jsonl", run_id="r", tools=("mcp:web",))
    with pytest.raises(SettingsError, match="tools export"):
        with_tool_specs(producer)


def test_servers_and_secrets_are_read_from_settings_and_shown_without_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "rollstream.toml"
    file.write_text(
        """
[tool_worker]
tools = ["bash", "mcp:web"]
mcp_allowed_hosts = ["tools.example"]
secrets = { OTHER = "very hidden" }
[tool_worker.mcp.web]
url = "https://tools.example/mcp"
headers = { Authorization = "KEY" }
"""
    )
    monkeypatch.setenv("ROLLSTREAM_SECRET_KEY", "very hidden")
    settings = load_settings(command_line=CommandLine(config=file, assignments=()), needs_broker=False).tool_worker
    assert settings.mcp["web"].headers == {"Authorization": "KEY"}
    assert "very hidden" not in str(shown_settings(settings))
