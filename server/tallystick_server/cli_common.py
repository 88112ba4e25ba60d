"""What the modules of the command line share: the option `--data`, the settings it leads to, time, a transaction."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console

from tallystick_server import operations
from tallystick_server.database import Transaction
from tallystick_server.settings import Settings, from_environment

T = TypeVar("T")

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Directory of keys and database; TALLYSTICK_DATA, else ./tallystick-data."),
]
out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)


def settings_of(context: typer.Context, data: Path | None) -> Settings:
    """`--data` may stand before the command or after it; the nearer one counts."""
    return from_environment(os.environ, data=data or context.obj)


def time_now() -> datetime:
    from tallystick_server.cli import wall_clock  # it mounts the modules that need this, so it is loaded after them

    return wall_clock()


def write(context: typer.Context, data: Path | None, work: Callable[[Transaction], Awaitable[T]]) -> T:
    """What `work` returns, done in one transaction of the server's database."""

    async def run() -> T:
        async with operations.opened(settings_of(context, data), time_now()) as server:
            return await server.database.write(work)

    return asyncio.run(run())
