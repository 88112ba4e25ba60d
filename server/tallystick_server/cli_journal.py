"""`tallystick-server journal`: a thin face of `journals`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from tallystick_server import journals
from tallystick_server.cli_common import Data, err, settings_of, time_now
from tallystick_shared.errors import CallerError

app = typer.Typer(help="Journals of tills that come as files.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def common() -> None:
    """Journals of tills that come as files."""


@app.command("import")
def import_command(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Made by: tallystick journal export FILE.")],
    data: Data = None,
) -> None:
    """Take in the journals of tills that cannot be online; what is known already is passed over."""
    done = asyncio.run(journals.import_journals(settings_of(context, data), files, now=time_now()))
    for one in done:
        _show(one)
    if refused := [one for one in done if one.refused]:
        raise CallerError(f"{len(refused)} of {len(done)} files were not taken as a whole", code="REFUSED")


def _show(one: journals.Imported) -> None:
    what = ", ".join(f"{count} {outcome}" for outcome, count in sorted(one.outcomes.items())) or "nothing new"
    typer.echo(f"{one.file}: device {one.device or 'unknown'}, {one.stored} events stored ({what}), {one.known} known")
    if one.refused_batch:
        err.print(
            f"{one.file}: batch {one.refused_batch} of {one.batches} and those after it: {one.refused}", style="red"
        )
    elif one.refused:
        err.print(f"{one.file}: {one.refused}", style="red")
    elif one.final:
        err.print(f"{one.name} was retired with this file: it has closed its leases, sells no more, and is revoked")
