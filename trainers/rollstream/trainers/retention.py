"""How near the records that a trainer still needs are to being deleted. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HOUR_S = 3600.0
MIB = 1024**2


@dataclass(frozen=True, slots=True)
class Retention:
    """What a topic keeps, per partition; None: without limit."""

    keep_s: float | None
    keep_bytes: int | None

    @classmethod
    def of_config(cls, config: Mapping[str, str]) -> Retention:
        """From the effective configs of a topic."""
        if "delete" not in config.get("cleanup.policy", "delete"):
            return cls(None, None)
        keep_ms, keep_bytes = int(config.get("retention.ms", -1)), int(config.get("retention.bytes", -1))
        return cls(keep_ms / 1000 if keep_ms >= 0 else None, keep_bytes if keep_bytes >= 0 else None)


@dataclass(frozen=True, slots=True)
class NeededSpan:
    """What is needed of one partition.

    Attributes:
        offset: of the first record that is needed.
        beginning: of the log.
        end: of the log.
        age_s: of the record at ``offset``; None: not known.
        size_bytes: from ``offset`` to the end, estimated; None: not known.
    """

    partition: int
    offset: int
    beginning: int
    end: int
    age_s: float | None = None
    size_bytes: float | None = None

    @property
    def is_cut(self) -> bool:
        """Whether records that were needed are gone."""
        return self.offset < self.beginning


def retention_left(span: NeededSpan, retention: Retention) -> float | None:
    """Share of the retention that is left to the first record needed: 1.0 just written, 0.0 due or gone.

    The nearer of the two limits counts; None where nothing is needed or nothing is ever deleted.
    """
    if span.is_cut:
        return 0.0
    if span.offset >= span.end:
        return None
    shares: list[float] = []
    if retention.keep_s is not None and span.age_s is not None:
        shares.append(1 - span.age_s / retention.keep_s if retention.keep_s else 0.0)
    if retention.keep_bytes is not None and span.size_bytes is not None:
        shares.append(1 - span.size_bytes / retention.keep_bytes if retention.keep_bytes else 0.0)
    return min(1.0, max(0.0, min(shares))) if shares else None


def is_news(left: float | None, warned_at: float | None, alarm_share: float) -> bool:
    """Whether to warn (again): the first time below the alarm, then whenever half of what was left has gone."""
    if left is None or left >= alarm_share:
        return False
    return warned_at is None or (left <= warned_at / 2 and left < warned_at)


def explain_alarm(topic: str, span: NeededSpan, left: float, retention: Retention) -> str:
    """The alarm in words: what is at stake, why, and what to do."""
    place = f"{topic}/{span.partition}"
    if span.is_cut:
        return (
            f"{place}: records {span.offset} to {span.beginning - 1} are deleted and the newest checkpoint still needs "
            "them: a trainer restored from it would stop with DataLossError. Save a checkpoint now, and raise "
            "retention.ms and retention.bytes of the topic"
        )
    limits: list[str] = []
    if retention.keep_s is not None and span.age_s is not None:
        limits.append(f"is {span.age_s / HOUR_S:.1f} h old of {retention.keep_s / HOUR_S:.1f} h kept")
    if retention.keep_bytes is not None and span.size_bytes is not None:
        kept_mib = retention.keep_bytes / MIB
        limits.append(f"has about {span.size_bytes / MIB:.0f} MiB from it to the end, of {kept_mib:.0f} MiB kept")
    return (
        f"{place}: record {span.offset}, the first that is still needed, {' and '.join(limits)}: {left:.0%} of the "
        "retention is left before unread trajectories are deleted. Train faster, save checkpoints more often, or raise "
        "retention.ms and retention.bytes of the topic"
    )
