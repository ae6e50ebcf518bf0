"""What a sandbox was found to hold, layer by layer, and what to do about a layer that does not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One layer, probed for real.

    Attributes:
        name: e.g. ``no network``.
        holds: whether the probe found it to hold.
        detail: what was seen.
        remedy: what to do where it does not hold.
        is_required: whether a worker refuses to start without it.
    """

    name: str
    holds: bool
    detail: str = ""
    remedy: str = ""
    is_required: bool = True

    def __str__(self) -> str:
        state = "holds" if self.holds else "DOES NOT HOLD" if self.is_required else "not here"
        shown = f"isolation {self.name}: {state}" + (f" ({self.detail})" if self.detail else "")
        return shown if self.holds or not self.remedy else f"{shown}; {self.remedy}"


@dataclass(frozen=True)
class IsolationReport:
    """All layers of one level."""

    level: str
    layers: tuple[Layer, ...]

    @property
    def failed(self) -> tuple[Layer, ...]:
        """Required layers that do not hold."""
        return tuple(layer for layer in self.layers if layer.is_required and not layer.holds)

    @property
    def held(self) -> tuple[str, ...]:
        """Names of the layers that hold."""
        return tuple(layer.name for layer in self.layers if layer.holds)
