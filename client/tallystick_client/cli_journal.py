"""`tallystick journal`: look at this till's journal, check it, carry it to the server as a file, erase a customer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from tallystick_client import schema
from tallystick_client.chain import verify_bodies, verify_chain
from tallystick_client.clock import SystemClock
from tallystick_client.directory import Directory
from tallystick_client.entry import REFUSED
from tallystick_client.errors import CallerError, InvalidInput
from tallystick_client.evaluating import write
from tallystick_client.exporting import Exported, Restored, export
from tallystick_client.forgetting import forget
from tallystick_client.journal import FILE_NAME, Journal
from tallystick_client.keeper import Keeper
from tallystick_client.listing import Entry, entries
from tallystick_client.screen import local_time, plain
from tallystick_shared.money import format_minor

app = typer.Typer(help="The journal of this till: list, verify, export, forget.", rich_markup_mode=None)
console = Console(highlight=False, markup=False, emoji=False)
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one line of JSON an event.")]


@contextmanager
def _journal(path: Path) -> Iterator[Journal]:
    """The journal as it is: nothing of it is set aside, whatever it turns out to be."""
    Directory(path).config()  # whether there is a till at all, in a sentence
    file = path / FILE_NAME
    with closing(Journal(schema.open_existing(file), file)) as journal:
        yield journal


@app.command("list")
def list_command(
    context: typer.Context,
    waiting: Annotated[bool, typer.Option("--waiting", help="Only what the server has not acknowledged.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10**9, help="How many, of the newest.")] = 100,
    as_json: AsJson = False,
) -> None:
    """What this till has written: redemptions, voids, closes of leases, clock anomalies; the newest last."""
    with _journal(context.obj) as journal, journal.read() as view:
        found = entries(view, waiting=waiting, limit=limit)
    if as_json:
        for entry in found:
            write(msgspec.json.encode(entry))
    else:
        _show(found)


@app.command()
def verify(context: typer.Context) -> None:
    """Check the whole chain, and every body; the first event that is not as it was written ends it with exit code 2."""
    with _journal(context.obj) as journal, journal.read() as view:
        state = view.state
        count = verify_chain(view, state.base_seq, state.head_seq)
        erased = verify_bodies(view)
    before = f", and {state.base_seq} before them were purged" if state.base_seq else ""
    console.print(f"{count} events are as they were written{before}; {erased} have no body any more")
    console.print(f"the head is {state.head_seq} {state.head_hash}", soft_wrap=True)


@app.command("export")
def export_command(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To be made; nothing is overwritten.")],
    final: Annotated[
        bool,
        typer.Option("--final", help="First retire this till: it gives its leases back, and redeems no more."),
    ] = False,
    epoch: Annotated[
        int | None, typer.Option(min=1, max=10**15, help="Where the import of an earlier file asked for it.")
    ] = None,
    after: Annotated[int | None, typer.Option(min=0, max=10**15, help="As --epoch, with which it goes.")] = None,
) -> None:
    """Write what the server does not have to FILE, for: tallystick-server journal import FILE. Needs no network."""
    if (epoch is None) != (after is None):
        raise CallerError("--epoch and --after go together: the import of an earlier file names both", code="MISUSE")
    restored = None if epoch is None or after is None else Restored(epoch, after)
    with closing(Keeper(context.obj, SystemClock())) as keeper:
        _show_export(file, final, export(keeper, file, final=final, restored=restored))


@app.command("forget")
def forget_command(
    context: typer.Context,
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="The customer's id, as orders name it.")],
) -> int:
    """Erase the orders of a customer from this till. Those that wait for the server have to be sent first."""
    try:
        customer.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("CUSTOMER", "must be text in UTF-8", ascii(customer)) from error
    with _journal(context.obj) as journal:
        done = forget(journal, customer)
    console.print(f"{done.bodies} bodies erased, {done.attempts} online redemptions removed; the chain is as before")
    if done.waiting:
        console.print(f"{done.waiting} wait for the server and were left: sync this till, then do this again")
        return REFUSED
    return 0


def _show_export(file: Path, final: bool, done: Exported) -> None:
    console.print(plain(f"{done.events} events from number {done.first_seq} on, in {done.batches} batches: {file}"))
    if final:
        console.print(f"{done.closed} leases are closed; this till is retired and redeems no more")
    if done.pending:
        console.print(f"{done.pending} online redemptions had no answer: only the server knows whether they counted")
    console.print("bring it to the server: tallystick-server journal import FILE")


def _show(found: list[Entry]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("event", "time", "type", "amount", "codes", "state", "id"):
        right = title in ("event", "amount")
        # an id is to be copied whole
        table.add_column(title, overflow="fold", justify="right" if right else "left", no_wrap=title == "id")
    for entry in found:
        amount = "" if entry.amount_minor is None else f"{entry.amount_minor} minor"
        if entry.amount_minor is not None and entry.currency is not None:
            amount = f"{entry.currency} {format_minor(entry.amount_minor, entry.currency)}"
        kind = entry.type if entry.ref_seq is None else f"{entry.type} of {entry.ref_seq}"
        said = [entry.state, entry.outcome or "", *entry.reasons, "voided" if entry.voided else ""]
        codes = "erased" if entry.erased else ", ".join(entry.codes)
        cells = (
            str(entry.seq),
            local_time(entry.at),
            kind,
            amount,
            codes,
            " ".join(filter(None, said)),
            entry.id,
        )
        table.add_row(*(plain(cell) for cell in cells))
    console.print(table)
