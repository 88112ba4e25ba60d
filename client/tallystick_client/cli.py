"""`tallystick`: the command line of a till, which `--dir` or `TALLYSTICK_DIR` names; nothing else configures it."""

from __future__ import annotations

import io
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import typer.exceptions
from rich.console import Console

from tallystick_client import __version__, cli_journal, screen, vectors
from tallystick_client.directory import Directory
from tallystick_client.drivers import Till
from tallystick_client.entry import MISUSE, REFUSED, exit_code, say
from tallystick_client.errors import CallerError, InvalidInput, TallystickError
from tallystick_client.evaluating import HELP, Call, answer_all, answered, error_json, explain_all, opened, write
from tallystick_client.reports import Receipt, SyncReport
from tallystick_client.syncing import BackgroundSync
from tallystick_client.tls import Tls, configure
from tallystick_shared.engine import result_json
from tallystick_shared.journal import Returned
from tallystick_shared.model import Order, parse_order

app = typer.Typer(
    name="tallystick",
    add_completion=False,
    rich_markup_mode=None,
    help="Vouchers at a till that keeps working without a network.",
    epilog="Exit codes: 0 done, 1 nothing redeemed or refused, 2 bad input or a failing disk, 3 no line, "
    "4 server not trusted.",
)
app.add_typer(vectors.app, name="vectors")
app.add_typer(cli_journal.app, name="journal")
console = Console(highlight=False, markup=False, emoji=False)

File = Annotated[str, typer.Argument(metavar="FILE", help="An order, or {order, codes}, as JSON; - is standard input.")]
Code = Annotated[list[str] | None, typer.Option("--code", "-c", metavar="CODE", help="A code; may be repeated.")]
Ca = Annotated[str | None, typer.Option(metavar="FILE", help="Trust the CAs in FILE and no others; or: system.")]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="sha256:...", help="A key of the server or of a CA, and a spare one: twice or more; or: none."
    ),
]
Proxy = Annotated[str | None, typer.Option(metavar="URL", help="An HTTP proxy; or: direct, or: environment.")]
AllowHttp = Annotated[bool, typer.Option("--allow-http", help="Allow http:// to another machine: others can read it.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: one line of JSON.")]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file or a line asks for. `id`: the caller's own, so that asking again has no second effect."""

    order: msgspec.Raw
    codes: list[str] = []
    id: str | None = None


def run(arguments: list[str]) -> int:
    """Runs one command; its exit code. Raises `TallystickError`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that lacks a product's letters is no error
    try:
        command = typer.main.get_command(app)
        outcome = command.main(arguments or ["--help"], prog_name="tallystick", standalone_mode=False)
    except typer.exceptions.TyperException as error:
        say(error.format_message(), "MISUSE")
        return MISUSE
    except typer.Abort:
        raise KeyboardInterrupt from None
    return outcome if isinstance(outcome, int) else 0


def _show_version(asked: bool) -> None:
    if asked:
        console.print(f"tallystick {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    directory: Annotated[Path, typer.Option("--dir", envvar="TALLYSTICK_DIR", help="The till's directory.")] = Path(
        "tallystick-till"
    ),
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    context.obj = directory


@app.command("evaluate", help=HELP)
def evaluate_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The document, or NDJSON; - is standard input.")],
    best: Annotated[bool, typer.Option("--best", help="Find the set of codes that saves the customer most.")] = False,
    qualify: Annotated[
        bool, typer.Option("--qualify", help="Say of each code whether it applies alone, and if not why.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="For people: a table in place of JSON.")] = False,
) -> int:
    if best and qualify:
        raise CallerError("--best and --qualify cannot be given together")
    call: Call = "best" if best else "qualify" if qualify else "evaluate"
    with opened(file) as reader:
        if explain:
            return explain_all(console, reader, call)
        return answer_all(reader, lambda raw: write(answered(raw, call)), lambda error: write(error_json(error)))


@app.command()
def enroll(
    context: typer.Context,
    server: Annotated[str, typer.Argument(metavar="SERVER", help="The server's address, https://...")],
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="From the operator; good for one till, once.")],
    name: Annotated[str | None, typer.Option(help="How the operator sees this till.")] = None,
    ca: Ca = None,
    pin: Pin = None,
    proxy: Proxy = None,
    allow_http: AllowHttp = False,
) -> None:
    """Make --dir a till of SERVER."""
    tls = Tls(ca, tuple(pin or ()), required=not allow_http)
    with Till.enroll(context.obj, server, token, name=name, tls=tls, proxy=proxy) as till:
        status = till.status()
        console.print(screen.plain(f"enrolled as {status.name} of store {status.store}; next: tallystick sync"))


@app.command("configure")
def configure_command(
    context: typer.Context,
    server: Annotated[str | None, typer.Option(help="Its new address.")] = None,
    ca: Ca = None,
    pin: Pin = None,
    proxy: Proxy = None,
    allow_http: AllowHttp = False,
) -> None:
    """Change how this till reaches its server; without options, show it."""
    line = configure(context.obj, server_url=server, ca=ca, pins=pin, proxy=proxy, required=not allow_http)
    config = Directory(context.obj).config()
    screen.show_line(console, config.server_url, line)


@app.command()
def sync(
    context: typer.Context,
    keep: Annotated[
        bool, typer.Option("--keep", help="Go on syncing, whenever it is time to, until SIGTERM or Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send what waits to the server, and take what is new."""
    with Till.open(context.obj) as till:
        if keep:
            _keep_syncing(till, as_json)
            return
        _show_sync(till.sync(), as_json)


@app.command()
def preview(context: typer.Context, file: File, code: Code = None, as_json: AsJson = False) -> int:
    """What the codes would do to an order, now, on this till. Changes nothing."""
    asked = as_asked(read_input(file), code)
    order = as_order(asked)
    with Till.open(context.obj) as till:
        result = till.preview(order, asked.codes)
    if as_json:
        write(result_json(result))
    else:
        screen.show_result(console, order, result)
    return 0 if result.applied else REFUSED


@app.command()
def redeem(
    context: typer.Context,
    file: File = "-",
    code: Code = None,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the server first; offline if there is no line.")
    ] = False,
    stream: Annotated[bool, typer.Option("--stream", help="FILE is NDJSON: redeem and answer line by line.")] = False,
    as_json: AsJson = False,
) -> int:
    """Redeem codes on an order. A receipt is printed only once it is on the disk."""
    if stream:
        with Till.open(context.obj) as till:
            return _stream(till, file, code, online)
    asked = as_asked(read_input(file), code)
    order = as_order(asked)
    with Till.open(context.obj) as till:
        receipt = _redeem(till, order, asked, online)
    if as_json:
        write(receipt_json(receipt))
    else:
        screen.show_receipt(console, order, receipt)
    return 0 if receipt.redeemed else REFUSED


@app.command()
def void(
    context: typer.Context,
    redemption_id: Annotated[str, typer.Argument(metavar="ID", help="The receipt's id.")],
    returned: Annotated[
        list[str] | None,
        typer.Option("--return", metavar="LINE=UNITS", help="Take back only these units of a line; may be repeated."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the journal.")] = "",
    void_id: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="UUID", help="The void's own id: with the same one again nothing comes back twice."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Void a redemption of this till, or take back some of its units."""
    units = [_returned(text) for text in returned or ()]
    with Till.open(context.obj) as till:
        receipt = till.void(redemption_id, returned=units, reason=reason, id=void_id)
    if as_json:
        write(msgspec.json.encode(receipt))
    else:
        screen.show_void(console, receipt)


@app.command()
def status(context: typer.Context, as_json: AsJson = False) -> None:
    """How this till stands: vouchers, leases, what waits, what needs a person."""
    with Till.open(context.obj) as till:
        now = till.status()
    if as_json:
        write(msgspec.json.encode(now))
    else:
        screen.show_status(console, now)


# ---- input --------------------------------------------------------------------------------------------------------


def read_input(file: str) -> bytes:
    """The whole of FILE or of standard input."""
    with opened(file) as reader:
        return reader.read_all()


def as_asked(raw: bytes, codes: list[str] | None) -> Asked:
    """`{"order": .., "codes": [..]}`, or an order by itself; `codes` of the command line count too."""
    try:
        document: Any = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        asked = msgspec.json.decode(raw, type=Asked) if "order" in document else Asked(order=msgspec.Raw(raw))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("", f"must be an order as JSON, or {{order, codes}}: {error}") from None
    asked = msgspec.structs.replace(asked, codes=[*asked.codes, *(codes or ())])
    if not asked.codes:
        raise InvalidInput("codes", "must hold at least one code, in the file or by --code")
    return asked


def as_order(asked: Asked) -> Order:
    return parse_order(bytes(asked.order))


def _returned(text: str) -> Returned:
    line_id, _, units = text.rpartition("=")
    if not line_id or not units.isdecimal() or not 1 <= int(units[:12]) <= 10**9:
        raise InvalidInput("--return", "must be LINE=UNITS, as in 1=2", text[:80])
    return Returned(line_id, int(units[:12]))


# ---- work and output ----------------------------------------------------------------------------------------------


def _redeem(till: Till, order: Order, asked: Asked, online: bool) -> Receipt:
    if online:
        return till.redeem_online(order, asked.codes, id=asked.id)
    return till.redeem(order, asked.codes, id=asked.id)


def _show_sync(report: SyncReport, as_json: bool) -> None:
    if as_json:
        write(msgspec.json.encode(report))
    else:
        screen.show_sync(console, report)


def _keep_syncing(till: Till, as_json: bool) -> None:
    """Until a signal that asks for the end, which is a success."""

    def show(done: BackgroundSync) -> None:
        if done.report is not None:
            _show_sync(done.report, as_json)
        elif done.error is not None and as_json:
            write(error_json(done.error))
        elif done.error is not None:
            say(str(done.error), done.error.code)

    # blocked before the thread begins, so that no thread of this process is interrupted, and none is missed
    ends = {signal.SIGTERM, signal.SIGINT}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        till.start_syncing(on_report=show)
        signal.sigwait(ends)
        till.stop_syncing()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stream(till: Till, file: str, codes: list[str] | None, online: bool) -> int:
    """Line by line; each answer is flushed before the next line is read. The worst of the lines is the exit code."""
    worst = 0
    with opened(file) as reader:
        while (line := reader.read()) is not None:
            try:
                reader.check(line)
                asked = as_asked(line, codes)
                receipt = _redeem(till, as_order(asked), asked, online)
            except TallystickError as error:
                write(error_json(error))
                worst = max(worst, exit_code(error))
                continue
            write(receipt_json(receipt))
            worst = max(worst, 0 if receipt.redeemed else REFUSED)
    return worst


def receipt_json(receipt: Receipt) -> bytes:
    """The result in it byte for byte as `evaluate` prints it."""
    fields = {name: getattr(receipt, name) for name in Receipt.__struct_fields__}
    return msgspec.json.encode({**fields, "result": msgspec.Raw(result_json(receipt.result))})
