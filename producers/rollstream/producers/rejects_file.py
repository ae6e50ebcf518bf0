"""Bad rows, written down as they are found."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import IO

from rollstream.producers.task_building import Rejection
from rollstream.schemas.errors import SettingsError

logger = logging.getLogger(__name__)

_MAX_LOGGED_REJECTIONS = 20


class RejectsFile:
    """The rejects file, if one is wanted: one JSON object per bad row, written as they are found."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._places: set[str] = set()

    def __enter__(self) -> RejectsFile:
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("w", encoding="utf-8")
            except OSError as error:
                raise SettingsError(f"cannot write the rejects file {str(self._path)!r}: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, rejection: Rejection) -> None:
        """Once per row, however many epochs meet it."""
        if rejection.place in self._places:
            return
        self._places.add(rejection.place)
        if len(self._places) <= _MAX_LOGGED_REJECTIONS:
            logger.warning("row left out: %s", rejection)
        if self._file is not None:
            json.dump({"place": rejection.place, "column": rejection.column, "rule": rejection.rule}, self._file)
            self._file.write("\n")
