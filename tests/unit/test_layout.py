"""The layout: one namespace over many folders, and light imports where the design promises them."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("vllm", "torch", "transformers")
SOURCE_ROOTS = ("schemas", "transport", "producers", "rollout_workers", "tool_workers", "trainers", "scorers", "cli")

IMPORT_AND_REPORT = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [sys.argv[1]]
if hasattr(package, "__path__"):
    names += [module.name for module in pkgutil.walk_packages(package.__path__, sys.argv[1] + ".")]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "heavy": [name for name in json.loads(sys.argv[2]) if name in sys.modules]}))
"""


@pytest.mark.parametrize(
    "package",
    [
        "rollstream.schemas",
        "rollstream.transport",
        "rollstream.producers",
        "rollstream.tool_workers",
        "rollstream.trainers",
        "rollstream.scorers",
        "rollstream.cli.main",
    ],
)
def test_a_role_without_a_model_imports_no_model_library(package: str) -> None:
    command = [sys.executable, "-c", IMPORT_AND_REPORT, package, json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert package in report["imported"]
    assert report["heavy"] == []


@pytest.mark.parametrize("folder", SOURCE_ROOTS)
def test_a_folder_holds_exactly_its_share_of_the_namespace(folder: str) -> None:
    namespace = ROOT / folder / "rollstream"

    assert not (namespace / "__init__.py").exists(), "an __init__.py here hides every other folder's packages"
    assert [entry.name for entry in namespace.iterdir() if entry.name != "__pycache__"] == [folder]
    assert (namespace / folder / "__init__.py").exists()
    assert (namespace / folder / "py.typed").exists()


def test_every_folder_is_packaged_installed_and_linted() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["tool"]["hatch"]["build"]

    assert tuple(build["dev-mode-dirs"]) == SOURCE_ROOTS
    assert build["targets"]["wheel"]["packages"] == [f"{folder}/rollstream" for folder in SOURCE_ROOTS]
    assert tuple(project["tool"]["ruff"]["src"]) == SOURCE_ROOTS


def test_names_of_test_files_are_unique() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]

    assert sorted(names) == sorted(set(names))
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("requirements", ["cpu.txt", "gpu.txt", "light.txt", "uv.txt"])
def test_every_requirement_is_pinned_and_hashed_and_names_no_index(requirements: str) -> None:
    text = (ROOT / "requirements" / requirements).read_text(encoding="utf-8")
    entries = text.replace("\\\n", " ").splitlines()
    pinned = [line for line in entries if line and not line.lstrip().startswith("#")]

    assert pinned
    assert [line for line in pinned if "==" not in line or "--hash=sha256:" not in line] == []
    assert "://" not in text
    assert "--index-url" not in text
