"""A formatted log folder without waiting for Kafka's formatter each time.

The formatter writes two files: ``meta.properties`` with the ids of this folder, and ``bootstrap.checkpoint`` with the
feature levels of the Kafka version, the same for every folder. The second is made once per set of jars and copied,
unless it holds users too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from rollstream.schemas.errors import TransientError
from rollstream.transport.local_broker.configuration import (
    Listeners,
    as_properties,
    kafka_uuid,
    meta_properties,
    server_properties,
)
from rollstream.transport.local_broker.java import Java
from rollstream.transport.local_broker.users import BrokerUsers

FORMAT_TIMEOUT_S = 60.0
CHECKPOINT = "bootstrap.checkpoint"
META = "meta.properties"
ARGUMENTS = "arguments"
"""File with further arguments of the formatter, one a line."""


def ensure_log_folder(
    records: Path, java: Java, jars: Path, cache_dir: Path, *, users: BrokerUsers | None = None
) -> None:
    """Format the folder, with these users, unless it is formatted; then it keeps the users it has.

    Raises:
        TransientError: Kafka's formatter failed; the message holds what it said.
    """
    if (records / META).exists():
        return
    records.mkdir(parents=True, exist_ok=True)
    if users is None:
        shutil.copyfile(_feature_levels(java, jars, cache_dir), records / CHECKPOINT)
    else:
        _make_checkpoint(java, jars, cache_dir, records / CHECKPOINT, users.formatter_arguments())
    ids = meta_properties(cluster_id=kafka_uuid(uuid.uuid4().bytes), directory_id=kafka_uuid(uuid.uuid4().bytes))
    fresh = records / f"{META}.new"
    fresh.write_text(ids, encoding="utf-8")
    fresh.rename(records / META)


def _feature_levels(java: Java, jars: Path, cache_dir: Path) -> Path:
    checkpoint = cache_dir / f"{jars.name}.{CHECKPOINT}"
    if not checkpoint.exists():
        _make_checkpoint(java, jars, cache_dir, checkpoint)
    return checkpoint


def _make_checkpoint(java: Java, jars: Path, cache_dir: Path, target: Path, arguments: Sequence[str] = ()) -> None:
    """The scratch folder is its owner's alone, and so are the arguments, which a command line would show to all."""
    with tempfile.TemporaryDirectory(prefix="format-", dir=cache_dir) as name:
        scratch = Path(name)
        settings = server_properties(Listeners("127.0.0.1", 9092, 9093), str(scratch / "records"))
        (scratch / "server.properties").write_text(as_properties(settings), encoding="utf-8")
        (scratch / ARGUMENTS).write_text("".join(f"{argument}\n" for argument in arguments), encoding="utf-8")
        _run_formatter(java, jars, scratch)
        shutil.move(scratch / "records" / CHECKPOINT, target.with_name(f"{target.name}.new"))
        os.replace(target.with_name(f"{target.name}.new"), target)


def _run_formatter(java: Java, jars: Path, scratch: Path) -> None:
    cluster_id = kafka_uuid(uuid.uuid4().bytes)
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(scratch / "server.properties")]
    if (scratch / ARGUMENTS).stat().st_size:
        tool.append(f"@{scratch / ARGUMENTS}")
    flags = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command = [str(java.executable), *flags, "-cp", f"{jars}/*", *tool]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise TransientError(f"Kafka's formatter failed with code {done.returncode}: {done.stdout}{done.stderr}")
