"""Every Prometheus metric of an archiver, under one name each."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from rollstream.transport.metrics import REGISTRY

RECORDS = Counter(
    "rollstream_archiver_records",
    "Records in the parts that this archiver wrote: archived, duplicate or undecodable.",
    ["outcome"],
    registry=REGISTRY,
)
PARTS = Counter(
    "rollstream_archiver_parts",
    "Parts: written, or given up (yielded) because another archiver's was there first.",
    ["outcome"],
    registry=REGISTRY,
)
PART_BYTES = Counter("rollstream_archiver_part_bytes", "Size of the parts written.", registry=REGISTRY)
HELD = Gauge("rollstream_archiver_trajectories_held", "Trajectories read and not archived yet.", registry=REGISTRY)
