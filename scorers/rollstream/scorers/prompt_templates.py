"""Texts and JSON bodies with places for what a trajectory holds. Pure.

Places are ``{prompt}``, ``{response}``, ``{final_answer}``, ``{data_source}`` and ``{extra.<key>}`` (a field of the
trajectory's ``extra``, which is the task's). Any other brace is text, so JSON examples need no escaping; what is filled
in is never looked at again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from rollstream.schemas.errors import DataError, SettingsError
from rollstream.scorers.scoring import ScoreRequest

_PLACE = re.compile(r"\{(prompt|response|final_answer|data_source|extra\.([\w.-]+))\}")
_OF_THE_RESPONSE = re.compile(r"\{(response|final_answer)\}")


def check_template(template: object, setting: str) -> None:
    """A template that says nothing of what the policy did scores nothing.

    Raises:
        SettingsError: it has neither ``{response}`` nor ``{final_answer}``.
    """
    if not _OF_THE_RESPONSE.search(msgspec.json.encode(template).decode()):
        raise SettingsError(
            f"{setting} has neither {{response}} nor {{final_answer}}: the score would be about nothing"
        )


def filled(template: str, request: ScoreRequest) -> str:
    """The text for one trajectory, nothing of it cut.

    Raises:
        DataError: ``extra`` has no such field.
        SettingsError: no tokenizer is set.
    """

    def fill(place: re.Match[str]) -> str:
        if place[2] is not None:
            return _extra(place[2], request)
        if place[1] == "data_source":
            return request.trajectory.data_source
        return cast("str", getattr(request.transcript, place[1]))

    return _PLACE.sub(fill, template)


def filled_json(template: object, request: ScoreRequest) -> Any:
    """The same for every text in a JSON value.

    Raises:
        DataError: as ``filled``.
        SettingsError: as ``filled``.
    """
    if isinstance(template, str):
        return filled(template, request)
    if isinstance(template, Mapping):
        return {k: filled_json(v, request) for k, v in cast("Mapping[str, Any]", template).items()}
    if isinstance(template, list | tuple):
        return [filled_json(each, request) for each in cast("list[Any]", template)]
    return template


def _extra(key: str, request: ScoreRequest) -> str:
    extra = request.trajectory.extra
    if key not in extra:
        raise DataError(f"the trajectory's extra has no {key!r}, only {sorted(extra)}: the task must bring it")
    value = extra[key]
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
