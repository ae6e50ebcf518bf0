"""The tokenizer and chat template of a model folder. The only module that touches transformers and tokenizers.

Nothing is fetched and no code of the folder runs: templates are rendered in transformers' sandbox.
"""

# transformers and tokenizers are only partly annotated
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rollstream.schemas.errors import SettingsError

TemplateMessage = Mapping[str, Any]

FIXED_DATE = "01 Jan 2025"
"""What templates that print today's date get: a replayed episode must have the prompt it had yesterday."""
_SPARE_ROWS = 4096
"""Rows of an embedding that no token uses: padding for speed stays below it, another tokenizer's model rarely does."""


class TemplateFailure(Exception):
    """The template raised on this conversation."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A string the tokenizer recognises anywhere in a text, before its model sees the rest."""

    id: int
    content: str
    is_control: bool
    """``special`` in the files. Markers such as ``<tool_call>`` are added tokens that are not."""
    strips_left: bool = False
    """Swallows the white space before it."""
    strips_right: bool = False


class ChatTokenizer:
    """One folder's vocabulary and template. Read only; safe to share between threads.

    Raises:
        SettingsError: the folder, the tokenizer or its template is missing, or they are not the model's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._tokenizer = _load(directory)
        self._templates = _templates(self._tokenizer.chat_template, directory)
        self.added_tokens = _added_tokens(self._tokenizer)
        self._plain = _without_added_tokens(self._tokenizer.backend_tokenizer.to_str())
        self.bos_id = cast("int | None", self._tokenizer.bos_token_id)
        self.size = len(self._tokenizer)
        """One more than the highest id of the vocabulary, added tokens included."""
        ends = _end_token_ids(directory)
        _check_model(directory, self.size, ends, {token.id for token in self.added_tokens})
        own_end = cast("int | None", self._tokenizer.eos_token_id)
        self.end_token_ids = sorted(ends | (set() if own_end is None else {own_end}))
        """What the folder's files name as ends of a generation."""

    def hash(self) -> str:
        """sha256 in hex over vocabulary, added tokens and template."""
        digest = hashlib.sha256()
        vocabulary = cast("dict[str, int]", self._tokenizer.get_vocab())
        for token, token_id in sorted(vocabulary.items(), key=lambda item: (item[1], item[0])):
            digest.update(f"{token_id}\0{token}\0".encode(errors="surrogatepass"))
        for token in self.added_tokens:
            digest.update(repr(token).encode())
        digest.update(json.dumps(self._templates, sort_keys=True).encode())
        return digest.hexdigest()

    def render(
        self, messages: Sequence[TemplateMessage], tools: Sequence[TemplateMessage], *, is_prompt: bool = True
    ) -> str:
        """The template's text; ends with the generation prompt if ``is_prompt``.

        Raises:
            TemplateFailure: see there.
        """
        template = self._templates.get("tool_use") if tools else None
        try:
            return cast(
                "str",
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    chat_template=template or self._templates["default"],
                    add_generation_prompt=is_prompt,
                    tokenize=False,
                    date_string=FIXED_DATE,
                    strftime_now=_fixed_date,
                ),
            )
        except Exception as error:
            raise TemplateFailure(f"{type(error).__name__}: {error}") from error

    def encode(self, text: str) -> list[int]:
        """The ids of trusted text; strings of added tokens become those tokens."""
        return cast("list[int]", self._tokenizer.encode(text, add_special_tokens=False))

    def encode_plain(self, text: str) -> list[int]:
        """The ids of text in which no added token is recognised."""
        return cast("list[int]", self._plain.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included; ids the vocabulary lacks vanish."""
        return cast(
            "str",
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False),
        )


def _fixed_date(_format: str) -> str:
    return FIXED_DATE


def _load(directory: Path) -> Any:
    if not directory.is_dir():
        raise SettingsError(f"model folder {str(directory)!r} does not exist: give the folder that holds the tokenizer")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise SettingsError(
            "a chat template needs transformers, which is not installed: install the extra 'cpu' or 'gpu'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"model folder {str(directory)!r} holds no tokenizer that loads ({type(error).__name__}: {reason}): "
            "copy tokenizer.json, tokenizer_config.json and chat_template.jinja of the model into it"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise SettingsError(
            f"the tokenizer in {str(directory)!r} has no tokenizer.json: convert it to a fast tokenizer"
        )
    return tokenizer


def _templates(declared: object, directory: Path) -> dict[str, str]:
    templates = {"default": declared} if isinstance(declared, str) else declared
    if not isinstance(templates, dict) or "default" not in templates:
        raise SettingsError(
            f"the tokenizer in {str(directory)!r} has no chat template: add the model's chat_template.jinja, or use "
            "its instruction-tuned sibling"
        )
    return cast("dict[str, str]", templates)


def _added_tokens(tokenizer: Any) -> tuple[AddedToken, ...]:
    return tuple(
        AddedToken(token_id, token.content, token.special, token.lstrip, token.rstrip)
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.content
    )


def _without_added_tokens(serialized: str) -> Any:
    from tokenizers import Tokenizer

    state = json.loads(serialized)
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    # A run of plain text follows an added token; only the very first of a text would get the prefix.
    steps = [state["pre_tokenizer"]]
    while steps:
        step = steps.pop() or {}
        steps += step.get("pretokenizers", [])
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps(state))


def _end_token_ids(directory: Path) -> set[int]:
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        declared = _settings_file(directory / name).get("eos_token_id")
        ends.update(declared if isinstance(declared, list) else [] if declared is None else [declared])
    return ends


def _check_model(directory: Path, size: int, ends: set[int], added: set[int]) -> None:
    config = _settings_file(directory / "config.json")
    rows = config.get("vocab_size") or cast("dict[str, Any]", config.get("text_config") or {}).get("vocab_size")
    fix = "copy the files of the tokenizer the model was trained with into the folder"
    if isinstance(rows, int) and size > rows:
        raise SettingsError(
            f"wrong tokenizer in {str(directory)!r}: it has {size} tokens, the model only knows {rows}; {fix}"
        )
    if isinstance(rows, int) and rows - size > max(_SPARE_ROWS, rows // 20):
        raise SettingsError(f"wrong tokenizer in {str(directory)!r}: it has {size} tokens, the model {rows}; {fix}")
    if strange := sorted(ends - added):
        raise SettingsError(
            f"wrong tokenizer in {str(directory)!r}: the model ends its turns with token {strange[0]}, which is not a "
            f"control token of this tokenizer; {fix}"
        )


def _settings_file(path: Path) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", json.loads(path.read_text())) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{str(path)!r} cannot be read as JSON: {error}") from error
