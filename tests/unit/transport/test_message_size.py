"""How large a message is, before it is encoded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rollstream.schemas.codec import encode
from rollstream.schemas.dead_letters import DeadLetter
from rollstream.transport.publisher import approximate_bytes


def test_arrays_text_and_bytes_count_wherever_they_lie() -> None:
    assert approximate_bytes(np.zeros(1000, dtype=np.int32)) == 4000
    assert approximate_bytes([b"x" * 10, {"key": "y" * 20}, ("z" * 30,)]) == 60


@given(st.binary(max_size=3000), st.text(max_size=2000))
def test_the_estimate_is_near_what_is_encoded(value: bytes, error: str) -> None:
    letter = DeadLetter(
        origin_topic="t",
        origin_partition=0,
        origin_offset=0,
        key=None,
        value=value,
        headers=[],
        role="r",
        worker_id="w",
        error_type="E",
        error=error,
    )
    encoded = len(encode(letter, compress_above_bytes=1_000_000).value)

    assert approximate_bytes(letter) <= encoded + 100
    assert encoded <= 4 * approximate_bytes(letter) + 300
