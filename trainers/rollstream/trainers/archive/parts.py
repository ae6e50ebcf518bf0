"""What a part is, and what it says of itself. Pure.

A part is a stretch ``[first_offset, end_offset)`` of one partition. Its name says where it begins, its header where it
ends and which trajectories are archived up to there. So the newest part of a partition alone says how to go on.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from rollstream.schemas.errors import SettingsError
from rollstream.trainers.archive.settings import PartFormat

MANIFEST_NAME: Final = "_archive.json"
ENDINGS: Final[dict[PartFormat, str]] = {"parquet": ".parquet", "jsonl": ".jsonl.zst"}
_PART: Final = re.compile(r"p(\d{5})/(\d{20})(\.parquet|\.jsonl\.zst)")


class ArchiveManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive is of. Written once, before the first part; the first one to write it decides.

    Attributes:
        topic: full name.
        starts: per partition, the offset of the oldest record that was there when the archive began.
    """

    layout: int = 1
    topic: str
    file_format: PartFormat
    starts: dict[int, int]


class PartHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a part says of itself.

    Attributes:
        topic: full name.
        end_offset: after the last record that was looked at for this part: the next part begins there.
        trajectories: in this part.
        rows: in this part, one for each sample.
        duplicates: records left out, as their trajectory lies in this part or in an earlier one.
        undecodable: records left out, as they are no trajectory.
        is_lost: retention has deleted this stretch before it was archived; the part is empty.
        archived_ids: `ArchivedIds` of everything in this partition up to ``end_offset``.
    """

    layout: int = 1
    topic: str
    partition: int
    first_offset: int
    end_offset: int
    trajectories: int = 0
    rows: int = 0
    duplicates: int = 0
    undecodable: int = 0
    is_lost: bool = False
    archived_ids: bytes


def part_name(partition: int, first_offset: int, file_format: PartFormat) -> str:
    """Where a part lies in its archive: a function of where it begins, so that there can be but one."""
    return f"{partition_directory(partition)}/{first_offset:020d}{ENDINGS[file_format]}"


def partition_directory(partition: int) -> str:
    """The directory of a partition's parts."""
    return f"p{partition:05d}"


def first_offset_of(name: str) -> int | None:
    """Where the part of this name begins; None: it is no part."""
    match = _PART.fullmatch(name)
    return int(match[2]) if match else None


def check_manifest(manifest: ArchiveManifest, wanted: ArchiveManifest, target: str) -> None:
    """Whether an archive is the one to go on with.

    Raises:
        SettingsError: it is of another topic, in another format, or of a later release.
    """
    if manifest.layout != wanted.layout:
        raise SettingsError(
            f"{target!r} has layout {manifest.layout}, this release knows {wanted.layout}: use the release that made it"
        )
    for name in ("topic", "file_format"):
        there, given = getattr(manifest, name), getattr(wanted, name)
        if there != given:
            raise SettingsError(
                f"{target!r} is an archive with {name} {there!r}, not {given!r}: give each topic and format a target "
                "of its own"
            )
