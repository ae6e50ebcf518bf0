"""What a trainer of Atropos says of itself when it registers."""

from __future__ import annotations

from typing import Any

import msgspec

from rollstream.schemas.errors import InvalidMessageError, SettingsError


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """The names are Atropos'."""

    wandb_group: str
    wandb_project: str
    batch_size: int
    """Sequences of a batch."""
    max_token_len: int
    """Sequences must be shorter."""
    checkpoint_dir: str
    save_checkpoint_interval: int
    starting_step: int
    num_steps: int


def read_registration(body: bytes) -> Registration:
    """The body of a request.

    Raises:
        InvalidMessageError: it is none, or no batch could have this size.
    """
    try:
        registration = msgspec.convert(msgspec.json.decode(body, type=dict[str, Any]), Registration, strict=False)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise InvalidMessageError(str(error)) from error
    if registration.batch_size < 1:
        raise InvalidMessageError(f"batch_size is {registration.batch_size}: at least 1 is needed", field="batch_size")
    return registration


def saved_registration(registration: dict[str, Any] | None) -> Registration | None:
    """The one in a state file.

    Raises:
        SettingsError: it is something else.
    """
    try:
        return None if registration is None else msgspec.convert(registration, Registration)
    except msgspec.ValidationError as error:
        raise SettingsError(f"the registration in the state file is none: {error}; name another file") from error
