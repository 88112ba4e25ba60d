"""The command line. Each command is a thin face of a function of `operations`, which programs can call as well."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tallystick_server import (
    __version__,
    cli_backup,
    cli_devices,
    cli_journal,
    cli_keys,
    cli_privacy,
    cli_recovery,
    operations,
)
from tallystick_server import keys as keys_of
from tallystick_server.importing import BadFile
from tallystick_server.logs import LOG, log_to_stderr
from tallystick_server.server import FIRST_SCOPE
from tallystick_server.settings import Settings, from_environment
from tallystick_shared.errors import CallerError

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Directory of keys and database; TALLYSTICK_DATA, else ./tallystick-data."),
]
Scope = Annotated[str, typer.Option("--scope", help="The scope: a group of stores that sees the same vouchers.")]
app = typer.Typer(
    name="tallystick-server",
    help="Issues signed voucher bundles and settles what offline tills redeemed.",
    rich_markup_mode=None,
    add_completion=False,
    epilog="Exit codes: 0 done, 1 something unexpected, 2 bad input, 3 try again later, 130 interrupted.",
)
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_devices.app, name="devices")
app.add_typer(cli_recovery.app, name="recovery")
app.add_typer(cli_journal.app, name="journal")
for command in (cli_backup.backup, cli_privacy.erase_bodies, cli_privacy.forget):
    app.command()(command)
out, err = Console(), Console(stderr=True)


def wall_clock() -> datetime:
    """The only place where the server reads the time of day."""
    return datetime.now(UTC)


def run(arguments: list[str]) -> None:
    """Runs one command. Raises `TallystickError`; a call that makes no sense is one of them (`MISUSE`)."""
    try:
        "".join(arguments).encode()
    except UnicodeEncodeError:
        raise CallerError("the arguments must be text in UTF-8", code="MISUSE") from None
    try:
        typer.main.get_command(app).main(arguments or ["--help"], prog_name="tallystick-server", standalone_mode=False)
    except typer.exceptions.TyperException as error:
        raise CallerError(" ".join(error.format_message().split()), code="MISUSE") from error
    except typer.Abort:
        raise KeyboardInterrupt from None


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tallystick-server {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    data: Data = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Issues signed voucher bundles and settles what offline tills redeemed."""
    context.obj = data


def _settings(context: typer.Context, data: Path | None) -> Settings:
    """`--data` may stand before the command or after it; the nearer one counts."""
    return from_environment(os.environ, data=data or context.obj)


@app.command()
def init(
    context: typer.Context,
    root_keys: Annotated[
        Path | None,
        typer.Option("--root-keys", metavar="DIR", help="Root keys made by keys init; they stay where they are."),
    ] = None,
    data: Data = None,
) -> None:
    """Make a new server: database, keys, the scope main, and an operator key that is shown this once."""
    settings = _settings(context, data)
    operator_key = asyncio.run(operations.initialise(settings, root_keys=root_keys, now=wall_clock()))
    err.print(f"A new server is in {settings.data}. Its operator key, shown only now:", highlight=False)
    typer.echo(operator_key)
    root_key = root_keys or settings.keys / "root.jwk"
    err.print(
        f"Move {root_key} to a place that is offline: it is needed only to change keys.",
        style="yellow",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def upgrade(context: typer.Context, data: Data = None) -> None:
    """Bring the database of an older release to this one; with the server stopped, and after a backup."""
    done = asyncio.run(operations.upgrade(_settings(context, data)))
    typer.echo("upgraded" if done else "nothing to do: the database is of this release")


@app.command()
def serve(
    context: typer.Context,
    data: Data = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes any that is free.")] = 8000,
) -> None:
    """Serve until stopped; requests that are under way are finished first."""
    settings = _settings(context, data)
    log_to_stderr()
    # said in a sentence, before a port is taken, where the database is not ready
    asyncio.run(operations.read_status(settings, now=wall_clock()))
    if note := keys_of.load(settings).expiry_note(wall_clock()):
        LOG.warning("root", note=note)
    import uvicorn

    from tallystick_server.app import create_app  # the other commands need no web framework, and start sooner

    application = create_app(settings, clock=wall_clock)
    with _listen(host, port) as listening:
        typer.echo(f"listening on http://{_shown(host)}:{listening.getsockname()[1]}")
        sys.stdout.flush()
        config = uvicorn.Config(
            application, log_level="warning", access_log=False, lifespan="on", ws="none", timeout_graceful_shutdown=30
        )
        # uvicorn raises the signal again once it has stopped; being asked to stop is no failure
        signal.signal(signal.SIGTERM, lambda *_: None)
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise CallerError(
            f"port {port} on {host} cannot be listened on: {error.strerror}", code="PORT_TAKEN"
        ) from error
    return listening


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@app.command("import")
def import_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="NDJSON, one voucher a line; gzip is recognised.")],
    scope: Scope = FIRST_SCOPE,
    hidden_codes: Annotated[
        bool, typer.Option("--hidden-codes", help="No device is told the codes, only their digests; 80 bits or more.")
    ] = False,
    data: Data = None,
) -> None:
    """Publish every voucher of a file, or none of them."""
    settings = _settings(context, data)
    try:
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        ) as progress:
            task = progress.add_task(f"reading {file}", total=None)

            def on_line(number: int) -> None:
                if number % 500 == 0:
                    progress.update(task, description=f"reading {file}: {number} lines")

            work = operations.import_vouchers(
                settings, file, scope=scope, hidden=hidden_codes, now=wall_clock(), on_line=on_line
            )
            count = asyncio.run(work)
    except BadFile as error:
        for line in error.lines:
            typer.echo(line, err=True)
        if error.count > len(error.lines):
            typer.echo(f"... and {error.count - len(error.lines)} more", err=True)
        raise
    typer.echo(f"{count} vouchers imported into {scope}")


@app.command()
def token(
    context: typer.Context,
    store: Annotated[str, typer.Option("--store", help="The store the new device stands in.")],
    scope: Scope = FIRST_SCOPE,
    ttl_hours: Annotated[
        int | None,
        typer.Option("--ttl-hours", min=1, max=720, help="How long it may be used; 24 where nothing else is set."),
    ] = None,
    data: Data = None,
) -> None:
    """Print a one-time token with which a new device enrols."""
    ttl_s = None if ttl_hours is None else ttl_hours * 3600
    settings = _settings(context, data)
    made = operations.create_token(settings, store_id=store, scope=scope, ttl_s=ttl_s, now=wall_clock())
    typer.echo(asyncio.run(made))


@app.command()
def status(
    context: typer.Context,
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How the server stands: scopes, devices, leases, events, and what needs a person."""

    found = asyncio.run(operations.read_status(_settings(context, data), now=wall_clock()))
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    table = Table(show_header=False, box=None)
    table.add_row("server", found.server_id)
    table.add_row("state", f"{found.state}, epoch {found.server_epoch}, ledger mark {found.ledger_mark}")
    for one in found.scopes:
        table.add_row(f"scope {one.name}", f"version {one.version}, {one.vouchers} vouchers")
    for name, counts in (("devices", found.devices), ("leases", found.leases), ("events", found.events)):
        table.add_row(name, ", ".join(f"{count} {state}" for state, count in counts.items()) or "none")
    table.add_row("flagged", f"{found.flagged_open} waiting for a person")
    table.add_row("overdrawn", f"{found.pools_overdrawn} vouchers used beyond their limit")
    out.print(table, highlight=False)
    for note in found.notes:
        out.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
