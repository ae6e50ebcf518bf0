"""Kafka tells its clients where its brokers are; behind a proxy that address has to be the proxy's. Pure.

Only two answers carry addresses: Metadata and FindCoordinator, in the versions without tagged fields.
"""

from __future__ import annotations

import struct

METADATA, FIND_COORDINATOR = 3, 10
FIRST_WITH_TAGGED_FIELDS = {METADATA: 9, FIND_COORDINATOR: 3}
INT16, INT32 = struct.Struct(">h"), struct.Struct(">i")
REQUEST_HEAD = struct.Struct(">hhi")
"""API key, API version, correlation id."""


def request_head(frame: bytes) -> tuple[int, int, int]:
    """(API key, API version, correlation id) of a request without its length."""
    api_key, version, correlation = REQUEST_HEAD.unpack_from(frame)
    return api_key, version, correlation


def correlation_of(frame: bytes) -> int:
    """The correlation id of an answer without its length."""
    return INT32.unpack_from(frame)[0]


def with_ports(frame: bytes, api_key: int, version: int, ports: dict[int, int]) -> bytes:
    """The answer with each port replaced as told; its size stays the same.

    Raises:
        ValueError: an answer with addresses in a version that this function cannot read.
    """
    if api_key not in FIRST_WITH_TAGGED_FIELDS:
        return frame
    if version >= FIRST_WITH_TAGGED_FIELDS[api_key]:
        raise ValueError(f"answer to API {api_key} in version {version}: its addresses cannot be replaced")
    patched = bytearray(frame)
    for place in _port_places(frame, api_key, version):
        INT32.pack_into(patched, place, ports.get(port := INT32.unpack_from(frame, place)[0], port))
    return bytes(patched)


def _port_places(frame: bytes, api_key: int, version: int) -> list[int]:
    place = INT32.size
    if api_key == FIND_COORDINATOR:
        place += INT32.size * (version >= 1) + INT16.size
        if version >= 1:
            place = _after_text(frame, place)
        return [_after_text(frame, place + INT32.size)]
    place += INT32.size * (version >= 3)
    count = INT32.unpack_from(frame, place)[0]
    place += INT32.size
    places: list[int] = []
    for _ in range(count):
        places.append(_after_text(frame, place + INT32.size))
        place = places[-1] + INT32.size
        if version >= 1:
            place = _after_text(frame, place)
    return places


def _after_text(frame: bytes, place: int) -> int:
    length = INT16.unpack_from(frame, place)[0]
    return place + INT16.size + max(0, length)
