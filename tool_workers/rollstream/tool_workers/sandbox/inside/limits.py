"""The limits of one sandbox, as the worker hands them to the supervisor."""

from __future__ import annotations

import json


class Limits:
    """Sizes in bytes, times in seconds; see ``SandboxSettings``.

    Attributes:
        workspace: where programs start.
        memory_folders: folders in memory; what is in them counts as memory, and as files.
        first_filter_path: the BPF program that allows, where nobody has loaded it yet; empty: somebody has.
        filter_path: the BPF program that asks the supervisor; empty: none.
        denied_names: names of the system calls it asks about, by their numbers.
    """

    def __init__(self, text: str) -> None:
        given = json.loads(text)
        self.workspace: str = given["workspace"]
        self.memory_folders: tuple[str, ...] = tuple(given["memory_folders"])
        self.memory_bytes: int = given["memory_bytes"]
        self.address_space_bytes: int = given["address_space_bytes"]
        self.file_bytes: int = given["file_bytes"]
        self.open_files: int = given["open_files"]
        self.processes: int = given["processes"]
        self.files: int = given["files"]
        self.sockets: int = given["sockets"]
        self.output_bytes: int = given["output_bytes"]
        self.flood_bytes: int = given["flood_bytes"]
        self.call_cpu_s: float = given["call_cpu_s"]
        self.session_cpu_s: float = given["session_cpu_s"]
        self.first_filter_path: str = given["first_filter_path"]
        self.filter_path: str = given["filter_path"]
        self.fallback_filter_path: str = given["fallback_filter_path"]
        self.denied_names: dict[int, str] = {int(number): name for number, name in given["denied_names"].items()}
