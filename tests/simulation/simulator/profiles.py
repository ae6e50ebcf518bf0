"""Families of scenarios by name. ``default`` is the mix; the others favour what is rare in it."""

from __future__ import annotations

from simulator.scenario import Profile

PROFILES: dict[str, Profile] = {
    "default": Profile(),
    "zombies": Profile(
        kinds=("freeze", "replace", "replace", "replace", "twin", "expel", "kill"), workers=(2, 3), poison=None
    ),
    "paying zombies": Profile(
        kinds=("freeze", "replace", "replace", "twin", "expel"), max_faults=16, pays=True, poison=None, is_static=True
    ),
    "tools": Profile(
        kinds=("kill", "freeze", "replace", "expel", "stray_call", "drain"), tool_workers=(2,), poison=None, storm=True
    ),
    "clock": Profile(kinds=("kill", "freeze", "replace", "kill_all"), short_clock=True, poison=None, wavers=False),
    "poison": Profile(kinds=("kill",), min_faults=0, max_faults=0, poison="some"),
    "trainer": Profile(
        kinds=("trainer", "trainer", "retention", "kill", "emit_again"), poison=None, wavers=False, workers=(2,)
    ),
    "rebalances": Profile(
        kinds=("expel", "expel", "expel", "scale", "drain", "replace"), max_faults=20, poison=None, workers=(2, 3)
    ),
    "again": Profile(
        kinds=("emit_again",) * 6 + ("producer", "kill", "strike_writer"),
        max_faults=20,
        poison=None,
        wavers=False,
        storm=True,
    ),
    "silence": Profile(kinds=("kill",), poison=None, storm=True, tool_workers=(1,), workers=(2,)),
    "failures": Profile(
        kinds=("freeze", "replace", "replace", "strike_writer", "strike_writer"),
        max_faults=16,
        workers=(2, 3),
        poison=None,
        wavers=False,
        engine_failures=True,
        engine_failure=0.3,
    ),
    "storms": Profile(
        kinds=("expel", "expel", "expel", "emit_again"),
        min_faults=25,
        max_faults=40,
        poison=None,
        workers=(2,),
        tool_workers=(1,),
        is_static=False,
    ),
    "payments": Profile(pays=True, poison=None, storm=True, tool_workers=(2,)),
}
