"""What production code reads of the world while a simulation runs: clocks, random names, Kafka, locks of the host.

Everything is put back at the end. Nothing of production code is changed: names it has imported are pointed elsewhere.
"""

from __future__ import annotations

import dataclasses
import inspect
import random
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

EPOCH_S = 1_700_000_000.0
_CLOCKS = (time.time, time.monotonic)


@contextmanager
def replaced(owner: object, name: str, value: object) -> Generator[None]:
    """An attribute with another value for a while."""
    former = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


@contextmanager
def simulated_clocks_and_names(now: Callable[[], float], rng: random.Random) -> Generator[None]:
    """``time.time``, ``time.monotonic`` and ``uuid.uuid4`` of the simulation, also where they are defaults."""

    def wall_clock() -> float:
        return EPOCH_S + now()

    def new_uuid() -> uuid.UUID:
        return uuid.UUID(int=rng.getrandbits(128), version=4)

    clocks: dict[object, object] = {time.time: wall_clock, time.monotonic: now}
    with ExitStack() as stack:
        for function, name, default in _clock_defaults():
            stack.enter_context(_other_default(function, name, clocks[default]))
        stack.enter_context(replaced(time, "time", wall_clock))
        stack.enter_context(replaced(time, "monotonic", now))
        stack.enter_context(replaced(uuid, "uuid4", new_uuid))
        yield


_found_defaults: dict[int, list[tuple[FunctionType, str, object]]] = {}


def _clock_defaults() -> list[tuple[FunctionType, str, object]]:
    """Functions of production code with a real clock as the default of a parameter."""
    modules = [module for name, module in sys.modules.copy().items() if name.startswith("rollstream.")]
    if len(modules) not in _found_defaults:
        _found_defaults.clear()
        functions = {id(f): f for module in modules for f in _functions_of(vars(module), module.__name__)}
        _found_defaults[len(modules)] = [
            (function, parameter.name, parameter.default)
            for function in functions.values()
            for parameter in inspect.signature(function).parameters.values()
            if any(parameter.default is clock for clock in _CLOCKS)
        ]
    return _found_defaults[len(modules)]


def _functions_of(namespace: Mapping[str, object], module: str) -> Iterator[FunctionType]:
    for value in list(namespace.values()):
        if isinstance(value, FunctionType) and value.__module__ == module:
            yield value
        elif inspect.isclass(value) and value.__module__ == module:
            if dataclasses.is_dataclass(value):
                yield from (f for f in [value.__init__] if isinstance(f, FunctionType))
            yield from (f for f in vars(value).values() if isinstance(f, FunctionType))


@contextmanager
def _other_default(function: FunctionType, name: str, value: object) -> Generator[None]:
    positional, keyword = function.__defaults__, function.__kwdefaults__
    if keyword and name in keyword:
        function.__kwdefaults__ = {**keyword, name: value}
    else:
        defaults: tuple[Any, ...] = positional or ()
        names = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
        ]
        changed = list(defaults)
        changed[names.index(name)] = value
        function.__defaults__ = tuple(changed)
    try:
        yield
    finally:
        function.__defaults__, function.__kwdefaults__ = positional, keyword
