"""`tallystick-server devices`: a thin face of `devices`, `leases` and `forks`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
import typer

from tallystick_server import devices, forks, leases, operating, operations
from tallystick_server.cli_common import Data, err, settings_of, time_now, write
from tallystick_shared.errors import CallerError, one_line
from tallystick_shared.money import format_minor
from tallystick_shared.wire import DeviceState

app = typer.Typer(
    help="Tills and apps: list, show, suspend, resume, revoke, lost, move, release.", rich_markup_mode=None,
    no_args_is_help=True,
)  # fmt: skip
DeviceId = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id, as devices list shows it.")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command("list")
def list_all(context: typer.Context, as_json: Json = False, data: Data = None) -> None:
    """Every device that ever enrolled, a line each."""

    async def read() -> list[operating.DeviceView]:
        found: list[operating.DeviceView] = []
        settings = settings_of(context, data)
        async with operations.opened(settings, time_now()) as server, server.database.read() as connection:
            while True:
                after = found[-1].id if found else ""
                page = await operating.list_devices(connection, after=after, limit=operating.PAGE_MAX)
                found += page
                if len(page) < operating.PAGE_MAX:
                    return found

    found = asyncio.run(read())
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    for one in found:
        last = "never" if one.last_sync_at is None else one.last_sync_at.isoformat(timespec="seconds")
        twice = "" if one.branches == 1 else ", in use twice"
        where = f"{one_line(one.store_id)}  {one_line(one.name)}  scope {one.scope}"
        typer.echo(f"{one.id}  {where}  {one.state}{twice}, last sync {last}")


@app.command()
def show(context: typer.Context, device: DeviceId, as_json: Json = False, data: Data = None) -> None:
    """A device, its journals, and what is held for it; of a forked one, what the copies can cost."""

    async def read() -> forks.DeviceDetail:
        settings = settings_of(context, data)
        async with operations.opened(settings, time_now()) as server, server.database.read() as connection:
            return await forks.show(connection, server, device)

    found = asyncio.run(read())
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    for line in describe(found):
        typer.echo(line)


def describe(found: forks.DeviceDetail) -> list[str]:
    """The device in words, a line each."""
    lines = [
        f"device {found.id}: {one_line(found.name)} in store {one_line(found.store_id)}",
        f"{found.state}, scope {found.scope}, journal known up to event {found.acknowledged_seq}",
    ]
    if found.forked:
        lines.append(
            f"It is in use twice: {len(found.branches)} copies of its key and journal were met. All that they sold is "
            "counted. Revoke it, and enrol the till anew with a new token."
        )
        lines += [_branch(one) for one in found.branches]
    burned = [one for one in found.leases if one.state == "burned"]
    exposed = [one for one in burned if one.rest_units or one.rest_minor]
    if found.forked and exposed:
        lines.append("Each copy but one can still sell, beyond the limit:")
        lines += [f"  {one_line(one.code)}: {_amount(one, one.rest_units, one.rest_minor)}" for one in exposed]
    over = [one for one in found.leases if one.uncovered_units or one.uncovered_minor]
    if over:
        lines.append("Sold already without cover, and flagged:")
        lines += [f"  {one_line(one.code)}: {_amount(one, one.uncovered_units, one.uncovered_minor)}" for one in over]
    lines.append("Leases:" if found.leases else "No leases.")
    lines += [_lease(one) for one in found.leases]
    return lines


def _branch(one: forks.BranchView) -> str:
    if not one.events:
        return f"  journal {one.branch}: an older copy was presented, without events of its own so far"
    at = "unknown" if one.last_at is None else one.last_at.isoformat(timespec="seconds")
    return f"  journal {one.branch}: {one.events} events up to number {one.last_seq}, the last one of {at}"


def _lease(one: forks.LeaseView) -> str:
    known_units = None if one.units is None else one.known_units
    known = _amount(one, known_units, None if one.minor is None else one.known_minor)
    until = one.expires_at.isoformat(timespec="seconds")
    on = f", used by journals {' and '.join(map(str, one.branches))}" if len(one.branches) > 1 else ""
    of = _amount(one, one.units, one.minor)
    return f"  {one.id}  {one_line(one.code)}: {one.state}, {known} of {of} used, until {until}{on}"


def _amount(one: forks.LeaseView, units: int | None, minor: int | None) -> str:
    parts = [] if units is None else [f"{units} use{'' if units == 1 else 's'}"]
    if minor is not None:
        parts.append(f"{format_minor(minor, one.currency or '')} {one.currency or ''}".rstrip())
    return " and ".join(parts)


def _change(context: typer.Context, data: Data, device: str, state: DeviceState) -> None:
    now = time_now()
    write(context, data, lambda t: devices.change_state(t, device, state, now=now))
    typer.echo(f"device {device} is {state}")


@app.command()
def suspend(context: typer.Context, device: DeviceId, data: Data = None) -> None:
    """It uploads its journal and gets nothing, until resume."""
    _change(context, data, device, DeviceState.SUSPENDED)


@app.command()
def resume(context: typer.Context, device: DeviceId, data: Data = None) -> None:
    """A suspended or pending device is active; a forked one must be enrolled anew instead."""
    _change(context, data, device, DeviceState.ACTIVE)


@app.command()
def revoke(context: typer.Context, device: DeviceId, data: Data = None) -> None:
    """For good: it can only upload its journal and close its leases."""
    _change(context, data, device, DeviceState.REVOKED)


@app.command()
def lost(context: typer.Context, device: DeviceId, data: Data = None) -> None:
    """It is gone: its leases count as used up. Should it come back, it returns what it did not use."""
    _change(context, data, device, DeviceState.LOST)


@app.command()
def move(
    context: typer.Context,
    device: DeviceId,
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="The scope it is to see.")],
    data: Data = None,
) -> None:
    """Into another scope: with its next sync it closes its leases and fetches the other vouchers."""
    now = time_now()
    write(context, data, lambda t: devices.move(t, device, scope, now=now))
    typer.echo(f"device {device} is in scope {scope}")


@app.command()
def release(
    context: typer.Context,
    lease: Annotated[str, typer.Argument(metavar="LEASE", help="The lease's id, as devices show shows it.")],
    yes: Annotated[bool, typer.Option("--yes", help="It is final, and can exceed the limit.")] = False,
    data: Data = None,
) -> None:
    """Take the rest of a lease back without its device: at risk, and final."""
    if not yes:
        raise CallerError(
            "what the device used of it and has not sent yet is sold twice then, beyond the voucher's limit, and "
            "nothing takes it back; release LEASE --yes does it all the same",
            code="NOT_CONFIRMED",
        )
    now = time_now()
    done = write(context, data, lambda t: leases.release(t, lease, now=now))
    free = [f"{done.freed_units} uses"] if done.freed_units is not None else []
    free += [f"{done.freed_minor} minor units"] if done.freed_minor is not None else []
    typer.echo(f"lease {done.id} is released: {' and '.join(free)} are free again")
    err.print("Whatever its device used beyond what is known now counts without cover, and is flagged.")
