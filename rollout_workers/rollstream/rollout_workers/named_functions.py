"""Functions that tasks and settings name: built-in ones by a word, anybody's own as ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, cast

from rollstream.schemas.errors import SettingsError


def import_function(name: str, *, kind: str, known: Iterable[str]) -> Callable[..., Any]:
    """The function ``module:function`` names. ``kind`` and ``known`` are for the message when there is none.

    Raises:
        SettingsError: the name is neither known nor ``module:function``, or that cannot be imported or called.
    """
    module_name, separator, attribute = name.partition(":")
    if not separator or not module_name or not attribute:
        raise SettingsError(f"{kind} {name!r} is unknown: known are {sorted(known)}, your own is 'module:function'")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise SettingsError(
            f"{kind} {name!r} cannot be loaded ({type(error).__name__}: {error}): is {module_name!r} installed or on "
            f"PYTHONPATH, and does it define {attribute!r}?"
        ) from error
    if not callable(function):
        raise SettingsError(f"{kind} {name!r} is not a function")
    return cast("Callable[..., Any]", function)
