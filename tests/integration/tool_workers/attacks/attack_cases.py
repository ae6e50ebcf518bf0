"""What an attack is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """Source text for Python that says OUT if it got what it wanted, HELD if not.

    ``{word}``, ``{canary}``, ``{port}``, ``{key}`` are facts of the host, see ``Outside`` in the tests.

    Attributes:
        without: the layer that holds it: where that is missing it gets out. "local": without any sandbox, as root.
            None: what it is after is nowhere, or harms whoever runs the control.
    """

    code: str
    without: str | None = None
