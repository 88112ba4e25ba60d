"""`tallystick-server erase-bodies` and `forget`: thin faces of `privacy`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from tallystick_server import privacy
from tallystick_server.cli_common import Data, err, settings_of, time_now


def erase_bodies(context: typer.Context, data: Data = None) -> None:
    """Erase the orders of events older than TALLYSTICK_BODY_RETENTION_S; what waits for a person is kept."""
    erased = asyncio.run(privacy.erase_old_bodies(settings_of(context, data), now=time_now()))
    typer.echo(f"{erased} bodies erased; amounts, counts and the chain of every journal are as before")


def forget(
    context: typer.Context,
    customer: Annotated[str, typer.Option("--customer", metavar="ID", help="The customer's id, as orders name it.")],
    data: Data = None,
) -> None:
    """Erase whatever names a customer, for good. Amounts and limits of others stay; this customer starts anew."""
    done = asyncio.run(privacy.forget(settings_of(context, data), customer, now=time_now()))
    typer.echo(f"forgotten at {done.redemptions} redemptions; {done.bodies} bodies erased")
    if done.waiting:
        err.print(f"{done.waiting} of these events wait for a person, who now sees their amounts and no order")
    if done.unreadable:
        err.print(
            f"{done.unreadable} bodies that cannot be read hold this id somewhere and were left: look at them in the "
            "flagged queue",
            style="yellow",
        )
    err.print(
        "Tills erase theirs with: tallystick journal forget CUSTOMER. A backup made before today still has all of it."
    )
