"""Secrets of tools: given by name to those that declare them, and to nobody else; never to a sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import quote, quote_plus

from pydantic import SecretStr

from rollstream.schemas.errors import SettingsError

VARIABLE_PREFIX = "ROLLSTREAM_SECRET_"
NAME = re.compile(r"[A-Z][A-Z0-9_]*")
SHORTEST_REDACTED_CHARS = 6


class Secrets(Mapping[str, str]):
    """The secrets a tool has declared. Take a parameter of this type to be given them; shown, it shows names only."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._values)})"


def find_secrets(
    declared: Mapping[str, Iterable[str]], given: Mapping[str, SecretStr], environment: Mapping[str, str]
) -> dict[str, Secrets]:
    """The secrets of each tool that declares some, from the settings, else from the environment.

    Raises:
        SettingsError: one is missing; names it, the tool, and where to set it.
    """
    found: dict[str, Secrets] = {}
    for tool, names in declared.items():
        values: dict[str, str] = {}
        for name in names:
            value = secret_value(name, given, environment)
            if not value:
                raise SettingsError(
                    f"tool {tool!r} needs the secret {name!r}: set tool_worker.secrets.{name}, or the environment "
                    f"variable {VARIABLE_PREFIX}{name}"
                )
            values[name] = value
        found[tool] = Secrets(values)
    return found


def secret_value(name: str, given: Mapping[str, SecretStr], environment: Mapping[str, str]) -> str | None:
    """From the settings, else from the environment; None: it is in neither."""
    return given[name].get_secret_value() if name in given else environment.get(VARIABLE_PREFIX + name)


class Redaction:
    """Takes secrets out of texts that a model will read."""

    def __init__(self, secrets: Iterable[Secrets]) -> None:
        names = {
            written: name
            for each in secrets
            for name, value in each.items()
            if len(value) >= SHORTEST_REDACTED_CHARS
            for written in spellings(value)
        }
        long_enough = sorted(names, key=len, reverse=True)
        self._names = names
        self._pattern = re.compile("|".join(map(re.escape, long_enough))) if long_enough else None

    def __call__(self, text: str) -> str:
        """The text with every secret's value replaced by its name."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda found: f"[secret {self._names[found[0]]}]", text)


def spellings(value: str) -> set[str]:
    """How a value may stand in a result: as it is, in JSON, in a URL."""
    in_json = {json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    in_urls = {quote(value, safe, errors="replace") for safe in ("", "/")} | {quote_plus(value, errors="replace")}
    return {value} | in_json | in_urls
