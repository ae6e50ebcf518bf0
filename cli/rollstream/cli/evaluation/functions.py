"""Functions of the user, named ``module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from rollstream.schemas.errors import SettingsError


def load_object(name: str, *, kind: str) -> Any:
    """What ``module:attribute`` names.

    Raises:
        SettingsError: it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise SettingsError(f"{kind} {name!r} has no such form, expected 'module:name'")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise SettingsError(
            f"{kind} {name!r} cannot be loaded ({type(error).__name__}: {error}): is {module_name!r} in this folder or "
            f"on PYTHONPATH, and does it define {attribute!r}?"
        ) from error


def load_function(name: str, *, kind: str) -> Callable[..., Any]:
    """The function, or object that can be called, that ``module:function`` names.

    Raises:
        SettingsError: it cannot be imported or called.
    """
    found = load_object(name, kind=kind)
    if not callable(found):
        raise SettingsError(f"{kind} {name!r} is a {type(found).__name__}, expected a function")
    return cast("Callable[..., Any]", found)
