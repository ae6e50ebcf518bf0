"""A curve over the versions of a trainer: which of them are evaluated, and the file that the points go to."""

from __future__ import annotations

import os
from pathlib import Path

from rollstream.schemas.control import PolicyVersion
from rollstream.schemas.errors import SettingsError
from rollstream.trainers.evaluation import EvaluationReport, decode_report
from rollstream.trainers.evaluation.report import PolicyFacts, encode_curve_point


def is_due(policy: PolicyVersion, last: PolicyFacts | None, *, every: int) -> bool:
    """Whether an announced version is to be evaluated after ``last``, the one evaluated before. Pure.

    The first one is; then each that is at least ``every`` versions on, or begins a newer lineage with other weights.
    """
    if last is None:
        return True
    if (policy.lineage, policy.version) <= (last.lineage, last.version):
        return False
    if policy.manifest_sha256 == last.manifest_sha256:
        return False  # a restored trainer has announced the same weights again
    return policy.lineage > last.lineage or policy.version - last.version >= every


class Curve:
    """A file of one JSON line per point. Crash: a torn last line is cut off by the next start; the others stay."""

    def __init__(self, path: Path) -> None:
        """Read what is there, and cut off a torn line.

        Raises:
            SettingsError: the file cannot be read or is no curve.
        """
        self._path = path
        self.points: list[EvaluationReport] = []
        try:
            body = path.read_bytes() if path.exists() else b""
            whole, newline, torn = body.rpartition(b"\n")
            if torn:
                os.truncate(path, len(whole) + len(newline))
        except OSError as error:
            raise SettingsError(f"the curve {str(path)!r} cannot be read: {error}") from error
        for number, line in enumerate(whole.splitlines(), start=1):
            self.points.append(decode_report(line, name=f"{path}:{number}"))

    @property
    def last(self) -> PolicyFacts | None:
        """The policy of the last point."""
        return self.points[-1].evaluations[0].policy if self.points else None

    def append(self, report: EvaluationReport) -> None:
        """Write a point; it is on the disk when this returns. Blocking."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(encode_curve_point(report))
            file.flush()
            os.fsync(file.fileno())
        self.points.append(report)
