"""Where an adapter keeps the stream's state: one JSON file, replaced whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

from rollstream.schemas.errors import SettingsError


class ProgressFile:
    """Blocking; call it in a thread. A reader sees the file before or after a ``save``, never between."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None if there is no file.

        Raises:
            SettingsError: the file is something else.
        """
        try:
            state = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unusable(str(error)) from error
        if not isinstance(state, dict):
            raise self._unusable("it holds no JSON object")
        return cast("dict[str, Any]", state)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file; it survives a power cut once this has returned.

        Raises:
            SettingsError: it cannot be written.
        """
        part = self._path.with_name(f"{self._path.name}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(json.dumps(state).encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
        except OSError as error:
            raise SettingsError(f"state file {str(self._path)!r} cannot be written: {error}; name another") from error

    def _unusable(self, reason: str) -> SettingsError:
        return SettingsError(
            f"state file {str(self._path)!r} cannot be used: {reason}; name another, or remove it to begin at the "
            "earliest trajectory"
        )
