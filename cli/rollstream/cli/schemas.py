"""`rollstream schemas`: the JSON Schema of every message, written to files or compared with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollstream.schemas.json_schemas import differing_json_schemas, write_json_schemas

schemas_app = typer.Typer(no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="Folder with one <Message>.json per message.", file_okay=False)]
DEFAULT_DIRECTORY = Path("schemas/json")


@schemas_app.command("write")
def write_command(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """Write the JSON Schema of every message."""
    paths = write_json_schemas(directory)
    print(f"wrote {len(paths)} schemas to {directory}")


@schemas_app.command("check")
def check_command(directory: Directory = DEFAULT_DIRECTORY) -> None:
    """Compare a folder with the code; exit code 1 when they differ."""
    differences = differing_json_schemas(directory)
    for difference in differences:
        print(difference)
    if differences:
        print(f"run: rollstream schemas write {directory}")
        raise typer.Exit(1)
    print(f"the schemas in {directory} are those of the code")
