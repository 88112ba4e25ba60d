"""`tallystick-server keys`: thin faces of `key_files`, `rotating` and `key_report`. All but `keys show` change keys."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from tallystick_server import key_files, key_report, rotating
from tallystick_server.settings import Settings, from_environment
from tallystick_shared.errors import CallerError

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Directory of keys and database; TALLYSTICK_DATA, else ./tallystick-data."),
]
Signers = Annotated[
    list[Path] | None,
    typer.Option("--sign-with", metavar="FILE", help="A private root key to sign with; several times for several."),
]
app = typer.Typer(help="Root keys and roots: make, rotate, sign, show.", rich_markup_mode=None, no_args_is_help=True)
out, err = Console(), Console(stderr=True)


def _settings(context: typer.Context, data: Path | None) -> Settings:
    return from_environment(os.environ, data=data or context.obj)


def _now() -> datetime:
    from tallystick_server.cli import wall_clock  # it mounts this module, so it is not there yet when this is loaded

    return wall_clock()


def _tell(sentence: str, style: str = "") -> None:
    err.print(sentence, style=style, highlight=False, soft_wrap=True)


@app.command("init")
def make(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that is not there yet.")],
    keys: Annotated[int, typer.Option(help="How many root keys.")] = 3,
    threshold: Annotated[int, typer.Option(help="How many of them it takes to sign a root.")] = 2,
) -> None:
    """Make a set of root keys. Needs no server and no network: do it where the keys will live."""
    for path in key_files.make_root_set(directory, keys=keys, threshold=threshold):
        typer.echo(path)
    _tell(f"Keep these {keys} private keys offline, in different places; any {threshold} of them sign a root.")
    _tell(
        f"{directory / key_files.PUBLIC_NAME} holds no secret. Use the set with init --root-keys or keys rotate --root."
    )


@app.command()
def rotate(
    context: typer.Context,
    bundle: Annotated[bool, typer.Option("--bundle", help="A new key for bundles.")] = False,
    receipt: Annotated[bool, typer.Option("--receipt", help="A new key for answers to devices.")] = False,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", metavar="DIR", help="New root keys: what keys init made. Private keys that are there sign, too."
        ),
    ] = None,
    threshold: Annotated[
        int | None, typer.Option(help="How many root keys it takes from now on, instead of what the set says.")
    ] = None,
    sign_with: Signers = None,
    go_on: Annotated[bool, typer.Option("--continue", help="Go on with the root that waits for signatures.")] = False,
    signed: Annotated[
        list[Path] | None,
        typer.Option("--signed", metavar="FILE", help="With --continue: a copy signed elsewhere by keys sign."),
    ] = None,
    data: Data = None,
) -> None:
    """Make the next root. With no new keys asked for, it renews the expiry."""
    settings = _settings(context, data)
    if go_on and (bundle or receipt or root or threshold is not None):
        raise CallerError("--continue takes the waiting root as it is: only --sign-with and --signed go with it")
    if signed and not go_on:
        raise CallerError("--signed goes with --continue only")
    if go_on:
        done = rotating.go_on(settings, signed or [], sign_with or [], now=_now())
    else:
        change = rotating.Change(bundle, receipt, root, threshold)
        done = rotating.begin(settings, change, sign_with or [], now=_now())
    typer.echo(done.file)
    if done.missing:
        _tell_of_waiting(done)
        _tell("Then tallystick-server keys rotate --continue, with --sign-with FILE or --signed FILE.")
    else:
        _tell(f"Root {done.version} is in use until {done.expires_at.date().isoformat()}.")
        _tell("A running server uses it from its next request on, devices from their next sync.")


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A root-N.partial.json, or a copy of it.")],
    sign_with: Signers = None,
) -> None:
    """Say what a waiting root changes, and sign it in its place. Needs no server and no network."""
    for line in rotating.changes(rotating.read_waiting(file)):
        typer.echo(line)
    if not sign_with:
        _tell("Nothing is signed yet: --sign-with FILE does.")
        return
    done = rotating.sign(file, sign_with)
    if done.missing:
        _tell_of_waiting(done)
    else:
        _tell(f"Root {done.version} has all its signatures. On the server: keys rotate --continue --signed FILE")


def _tell_of_waiting(done: rotating.Rotation) -> None:
    _tell(f"Root {done.version} waits, and nothing changes for devices: it has {' and '.join(done.missing)}.", "yellow")


@app.command()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    data: Data = None,
) -> None:
    """Root, expiry, roles, the private keys on this machine, and what needs a person."""
    found = key_report.report(_settings(context, data), now=_now())
    if as_json:
        typer.echo(msgspec.json.encode(found).decode())
        return
    typer.echo(f"root {found.root_version}, until {found.expires_at.date().isoformat()} ({found.days_left} days)")
    for name, role in found.roles.items():
        for kid in role.kids:
            typer.echo(f"{name:<8} {kid}  {role.private.get(kid, 'private key elsewhere')}")
        if name == "root":
            typer.echo(f"{name:<8} {role.threshold} of {len(role.kids)} sign")
    for note in found.notes:
        out.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
