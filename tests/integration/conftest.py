"""Fixtures of the tests that run the real thing."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_dir() -> Path:
    """Folder with the tiny model and its tokenizer; trained once per recipe, kept in the user's cache."""
    from rollstream.cli.tiny_model import ensure_tiny_model

    return ensure_tiny_model(progress=print)
