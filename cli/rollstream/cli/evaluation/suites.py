"""Several evaluations in one call: a TOML file of them, or a list in a module."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from rollstream.cli.evaluation.functions import load_object
from rollstream.cli.evaluation.settings import EvaluationSettings
from rollstream.schemas.errors import SettingsError

KEY = "evaluation"


def load_suite(source: str, settings: EvaluationSettings, given: Mapping[str, Any]) -> list[EvaluationSettings]:
    """The evaluations of a suite.

    Args:
        source: a TOML file with ``[[evaluation]]`` tables, or ``module:name`` of a list of dicts or settings.
        settings: of the process; what an entry does not name is taken from here.
        given: options of the command line, which win over the entries.

    Raises:
        SettingsError: the suite cannot be read, an entry is wrong, or two have one name.
    """
    common = settings.model_dump(exclude_unset=True)
    evaluations = [_evaluation(source, entry, common, given) for entry in _entries(source)]
    names = [evaluation.name for evaluation in evaluations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"suite {source!r} names {twice[0]!r} twice: reports know evaluations by their names")
    return evaluations


def _evaluation(source: str, entry: object, common: Mapping[str, Any], given: Mapping[str, Any]) -> EvaluationSettings:
    if isinstance(entry, EvaluationSettings):
        entry = entry.model_dump(exclude_unset=True)
    if not isinstance(entry, Mapping):
        raise SettingsError(f"suite {source!r} holds {entry!r}, expected tables of settings")
    own = cast("Mapping[str, Any]", entry)
    tasks: dict[str, Any] = {**common.get("tasks", {}), **own.get("tasks", {}), **(given.get("tasks") or {})}
    try:
        return EvaluationSettings.model_validate({**common, **own, **_set(given), "tasks": tasks}).checked()
    except ValidationError as error:
        lines = "\n".join(f"  {'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise SettingsError(f"evaluation {own.get('name')!r} of suite {source!r} is wrong:\n{lines}") from error


def _entries(source: str) -> Sequence[object]:
    path = Path(source)
    if path.suffix == ".toml":
        if not path.is_file():
            raise SettingsError(f"--suite {source!r}: there is no such file")
        try:
            found: object = tomllib.loads(path.read_text(encoding="utf-8")).get(KEY)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"--suite {source!r} is not valid TOML: {error}") from error
    else:
        found = load_object(source, kind="suite")
    if not isinstance(found, Sequence) or isinstance(found, str | bytes) or not found:
        raise SettingsError(f"suite {source!r} holds no evaluations: expected a list of tables [[{KEY}]]")
    return cast("Sequence[object]", found)


def _set(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}
