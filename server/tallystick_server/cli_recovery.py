"""`tallystick-server recovery`: a thin face of `recovery`, for a database that was restored from a backup."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from tallystick_server import recovery
from tallystick_server.cli_common import Data, err, time_now, write
from tallystick_shared.errors import CallerError, one_line

app = typer.Typer(
    help="After the database was restored from a backup: begin, status, end.", rich_markup_mode=None,
    no_args_is_help=True,
)  # fmt: skip


@app.command()
def begin(
    context: typer.Context,
    all_known: Annotated[
        bool,
        typer.Option("--all-known", help="No till enrolled since the backup: end by itself when all have reported."),
    ] = False,
    data: Data = None,
) -> None:
    """Declare that the database was restored: devices send again what it has forgotten. Right after the restore."""
    now = time_now()
    found = write(context, data, lambda t: recovery.begin(t, now=now, all_known=all_known))
    typer.echo(f"epoch {found.server_epoch} has begun; {found.devices} devices are to report")
    if found.state == "recovering":
        err.print(
            "Until it ends, no lease is granted and no voucher with a limit is used online; tills go on from the "
            f"leases they hold. {recovery.what_to_do(found)}."
        )
    if found.known_until is not None:
        err.print(
            f"What was decided after {_time(found.known_until)} is forgotten: revoked, lost or moved devices, "
            "withdrawn vouchers, lowered limits. Do it again."
        )


@app.command()
def status(context: typer.Context, data: Data = None) -> None:
    """Which devices have not reported yet."""
    _show(write(context, data, recovery.progress))


@app.command()
def end(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Without it, only what would follow is told.")] = False,
    data: Data = None,
) -> None:
    """Do not wait for the devices that have not reported."""
    now = time_now()
    found = write(context, data, (lambda t: recovery.end(t, now=now)) if yes else recovery.must_be_recovering)
    _show(found)
    if found.unreported:
        err.print(
            f"What {len(found.unreported)} devices hold and have sold since the backup is not known: the same units "
            "can be granted to others, and limits exceeded by as much. It is counted when they come, and flagged.",
            style="yellow",
        )
    if not yes:
        raise CallerError("nothing was changed: recovery end --yes ends it", code="NOT_CONFIRMED")


def _show(found: recovery.Progress) -> None:
    reported = found.devices - len(found.unreported)
    typer.echo(f"{found.state}, epoch {found.server_epoch}: {reported} of {found.devices} devices have reported")
    for one in found.unreported:
        last = "never" if one.last_sync_at is None else _time(one.last_sync_at)
        typer.echo(f"{one.id}  {one_line(one.store_id)}  {one_line(one.name)}  {one.state}, last sync known: {last}")
    for came in found.returned:
        typer.echo(
            f"{came.id}  {one_line(came.store_id)}  {one_line(came.name)}  {came.state}, came back by itself: it "
            "enrolled after the backup"
        )
    if found.returned:
        err.print("Of these, revoke again what was revoked or lost before; devices resume lets a pending one in.")
    if found.state == "recovering":
        err.print(f"{recovery.what_to_do(found)}.")


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
