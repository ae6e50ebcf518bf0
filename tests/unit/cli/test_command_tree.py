from __future__ import annotations

import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from rollstream.cli.main import COMMANDS, build_app, globals_first
from rollstream.cli.version import installed_versions


def test_help_names_every_command_without_importing_one() -> None:
    script = (
        "import sys; sys.argv = ['rollstream', '--help']\n"
        "from rollstream.cli.main import main\n"
        "try:\n    main()\n"
        "finally:\n    print('LOADED', [m for m in sys.modules if m.startswith(('rollstream', 'aiokafka'))])"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert time.monotonic() - started < 5
    assert all(command.name in done.stdout for command in COMMANDS)
    loaded = done.stdout.partition("LOADED")[2]
    assert "rollstream.cli.main" in loaded
    assert "aiokafka" not in loaded
    assert "settings" not in loaded


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_can_say_what_it_does(name: str) -> None:
    result = CliRunner().invoke(build_app([name]), [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(build_app(["nonsense"]), ["nonsense"]).exit_code == 2


def test_settings_options_may_stand_after_the_command() -> None:
    assert globals_first(["up", "--set", "a.b=1", "--once", "--config=x.toml"]) == [
        "--set",
        "a.b=1",
        "--config=x.toml",
        "up",
        "--once",
    ]
    assert globals_first(["x", "--", "--set", "a"]) == ["x", "--", "--set", "a"]
    assert globals_first(["x", "--config"]) == ["--config", "x"]


def test_version_names_python_and_what_is_installed() -> None:
    versions = installed_versions()
    assert {"python", "rollstream", "aiokafka"} <= versions.keys()
    assert CliRunner().invoke(build_app(["version"]), ["version"]).output.startswith("python ")
