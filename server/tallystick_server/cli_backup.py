"""`tallystick-server backup`: a thin face of `backups`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from tallystick_server import backups
from tallystick_server.cli_common import Data, err, settings_of, time_now


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The copy; nothing is overwritten.")],
    data: Data = None,
) -> None:
    """Copy the SQLite database to FILE and check the copy; the server may go on serving.

    Devices then purge what FILE holds of their journals: from then on only this or a later backup may be restored.
    """
    settings = settings_of(context, data)
    made = asyncio.run(backups.back_up(settings, file, now=time_now()))
    typer.echo(
        f"{file} holds {made.events} events of {len(made.journals)} devices, up to ledger mark {made.ledger_mark}"
    )
    err.print(
        "Devices now purge what it holds: restore only this or a later backup. Keep it on another machine, and with it "
        f"a copy of {settings.keys}, which is not in it."
    )
