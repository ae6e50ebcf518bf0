"""The connections of a client of the simulation: there are none."""

from __future__ import annotations


class Connections:
    """What production code closes on its own when a client could not be stopped."""

    async def close(self) -> None:
        """Nothing is open."""
