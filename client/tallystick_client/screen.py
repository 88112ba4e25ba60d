"""What a cashier reads: results, receipts and the status, on a terminal.

Whatever a user wrote (product ids, codes, names) reaches the terminal through `plain`: never read as markup, never as
a control sequence. Nothing is cut off: what is too long goes on in the next row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tallystick_client.directory import LineConfig
from tallystick_client.errors import TallystickError
from tallystick_client.reports import Receipt, Status, SyncReport, VoidReceipt
from tallystick_client.tls import without_password
from tallystick_shared.engine import Applied, Best, Qualified, Reason, Refused, Result
from tallystick_shared.errors import one_line
from tallystick_shared.model import Order
from tallystick_shared.money import format_minor

REASONS: Final = {
    Reason.UNKNOWN_CODE: "no such code",
    Reason.INACTIVE: "paused for now",
    Reason.NOT_YET_VALID: "not valid yet",
    Reason.EXPIRED: "expired",
    Reason.OUTSIDE_HOURS: "not at this hour",
    Reason.CURRENCY_MISMATCH: "for another currency",
    Reason.LIMIT_REACHED: "used up, or what is left of it is held by tills",
    Reason.CUSTOMER_LIMIT_REACHED: "this customer has had it",
    Reason.NEEDS_CONNECTION: "only with a connection to the server",
    Reason.NO_ALLOWANCE: "this till holds no more uses of it",
    Reason.CONDITION_NOT_MET: "its conditions are not met",
    Reason.NO_MATCHING_ITEM: "nothing in this order that it is for",
    Reason.BELOW_FIRST_TIER: "the order is too small for it",
    Reason.NOTHING_TO_DISCOUNT: "nothing left to take off",
    Reason.BUDGET_EXHAUSTED: "its budget does not cover this",
    Reason.STACKING_CONFLICT: "does not go together with another code",
}
WIDTH_MIN: Final = 52
WIDTH_MAX: Final = 100
_GAP: Final = 2


def show_result(console: Console, order: Order, result: Result) -> None:
    console.print(_Page(console, order).result(result, shares=False))


def show_explanation(console: Console, order: Order, result: Result) -> None:
    """With what each voucher takes off each line."""
    console.print(_Page(console, order).result(result, shares=True))


def show_best(console: Console, order: Order, best: Best) -> None:
    """Which codes were chosen, what they save, whether the search was exact, and then the result."""
    page = _Page(console, order)
    if best.codes:
        chosen = f"Best: {' + '.join(map(one_line, best.codes))}, saves {page.money(best.saved_minor)} {order.currency}"
    else:
        chosen = "Best: no code, none of them saves anything"
    sure = (
        "Every combination was tried: none saves more."
        if best.exact
        else "Too many codes apply to try every combination: another one may save more."
    )
    console.print(Text(chosen, style="bold green", overflow="fold"), Text(sure), "", sep="\n")
    console.print(page.result(best.result, shares=True))


def show_qualified(console: Console, order: Order, vouchers: Sequence[Qualified]) -> None:
    """Which vouchers apply alone and what each takes, which do not and what would help."""
    page = _Page(console, order)
    parts: list[RenderableType] = []
    fitting = [one for one in vouchers if one.reason is None]
    if fitting:
        parts.append(Text("Apply, each alone", style="bold"))
        parts += [page.row(_code(one.code, "green"), page.off(one.discount_minor or 0), 2) for one in fitting]
    others = [Refused(one.code, one.reason, one.detail or {}) for one in vouchers if one.reason is not None]
    if others:
        parts += [""] * bool(parts) + [Text("Do not apply", style="bold"), *page.refused(others)]
    console.print(Group(*parts) if parts else Text("no vouchers"))


def show_error(console: Console, error: TallystickError) -> None:
    """In the place of an answer, among others."""
    console.print(Text(f"error: {error} ({error.code})", style="bold red", overflow="fold"))


def show_receipt(console: Console, order: Order, receipt: Receipt) -> None:
    show_result(console, order, receipt.result)
    if receipt.redeemed:
        where = "at the server" if receipt.online else "on this till"
        console.print(Text(f"REDEEMED {where}  {local_time(receipt.at)}", style="bold green"))
        console.print(Text(f"receipt {receipt.id}", style="dim"))
    else:
        console.print(Text("NOTHING REDEEMED", style="bold red"))


def show_void(console: Console, receipt: VoidReceipt) -> None:
    money = f"{format_minor(receipt.refund_minor, receipt.currency)} {receipt.currency}"
    console.print(Text(f"VOIDED  give back {money}", style="bold green"))
    console.print(Text(f"receipt {receipt.id}", style="dim"))


def show_sync(console: Console, report: SyncReport) -> None:
    outcomes = ", ".join(f"{count} {name}" for name, count in report.outcomes.items()) or "nothing waited"
    table = _pairs()
    _add(table, "acknowledged", f"{report.acknowledged} ({outcomes})")
    _add(table, "leases", f"{report.leases_granted} granted, {report.leases_closed} closed")
    _add(table, "vouchers", f"version {report.bundle_version}" if report.bundle_version else "none")
    _add(table, "till", report.state)
    console.print(table)


def show_line(console: Console, server_url: str, line: LineConfig) -> None:
    table = _pairs()
    _add(table, "server", server_url)
    _add(table, "CAs", "those of this machine" if line.ca_pem is None else f"{line.ca_pem.count('BEGIN')} kept here")
    _add(table, "pins", "none" if not line.pins else " ".join(line.pins))
    _add(table, "proxy", "as the environment says" if line.proxy is None else without_password(line.proxy))
    console.print(table)


def show_status(console: Console, status: Status) -> None:
    good = status.state == "active" and status.freshness == "fresh"
    expires = "" if status.bundle_expires_at is None else f", good until {local_time(status.bundle_expires_at)}"
    table = _pairs()
    _add(table, "till", f"{status.name}, store {status.store}, scope {status.scope}")
    _add(table, "state", plain(f"{status.state}, {status.freshness}", "green" if good else "yellow"))
    _add(table, "vouchers", f"{status.bundle_vouchers} in version {status.bundle_version}{expires}")
    _add(table, "last sync", "never" if status.last_sync_at is None else local_time(status.last_sync_at))
    _add(table, "waiting", f"{status.waiting} events ({status.waiting_redemptions} redemptions) to be sent")
    _add(
        table,
        "journal",
        f"{status.head} written, {status.acknowledged} acknowledged, {status.durable} in the server's backups",
    )
    _add(table, "server", status.server)
    _add(table, "device", status.device)
    console.print(table)
    if status.leases:
        console.print(_leases(status))
    for flagged in status.flagged:
        console.print(plain(f"event {flagged.seq} {flagged.outcome}: {', '.join(flagged.reasons)}", "yellow"))
    for note in status.notes:
        console.print(plain(f"! {note}", "yellow"))


# ---- text ---------------------------------------------------------------------------------------------------------


def plain(text: str, style: str = "") -> Text:
    """Text of a user's, whatever is in it, whole."""
    return Text(one_line(text), style=style, overflow="fold")


def explain(refused: Refused) -> str:
    """Why a code was refused, for a cashier to read out."""
    if refused.reason is Reason.CUSTOMER_LIMIT_REACHED and refused.detail.get("field") == "customer.id":
        return "only for a known customer: the order has none"
    return REASONS[refused.reason]


def _code(code: str, colour: str) -> Text:
    return plain(code, f"bold {colour}")


# ---- an order and what is said of it ------------------------------------------------------------------------------


class _Page:
    """One order on one console: as wide as its lines need and the console allows, amounts at the right edge."""

    def __init__(self, console: Console, order: Order) -> None:
        self.order = order
        self.console_width = min(console.width, WIDTH_MAX)
        self.width = min(self.console_width, WIDTH_MIN)

    def money(self, minor: int) -> str:
        return format_minor(minor, self.order.currency)

    def off(self, minor: int) -> Text:
        return Text(f"-{self.money(minor)}" if minor else "", style="green")

    def result(self, result: Result, *, shares: bool) -> RenderableType:
        parts: list[RenderableType] = [self._lines(result), ""]
        if result.applied:
            parts.append(Text("Applied, in this order", style="bold"))
            for applied in result.applied:
                parts += self._applied(applied, shares)
            parts.append("")
        if result.refused:
            parts += [Text("Refused", style="bold"), *self.refused(result.refused), ""]
        return Group(*parts, *self._sums(result))

    def _lines(self, result: Result) -> RenderableType:
        """A table where its amounts leave room for the products, else each line by itself."""
        rows = [
            (
                plain(line.id),
                plain(line.product_id),
                Text(f"{line.quantity} x"),
                Text(self.money(line.unit_price_minor)),
                self.off(taken.discount_minor),
                Text(self.money(line.quantity * line.unit_price_minor - taken.discount_minor)),
            )
            for line, taken in zip(self.order.lines, result.lines, strict=True)
        ]
        titles = ("line", "product", "", "price", "off", "after")
        widths = [max([cell_len(title), *(row[index].cell_len for row in rows)]) for index, title in enumerate(titles)]
        widths[0] = min(widths[0], 12)
        room = self.console_width - sum(widths) + widths[1] - _GAP * (len(widths) - 1)
        if room < 12:
            self.width = self.console_width
            return Group(*(part for row in rows for part in self._line_alone(*row)))
        lacking = max(0, WIDTH_MIN - (sum(widths) + _GAP * (len(widths) - 1)))
        widths[1] = min(widths[1] + lacking, room)
        self.width = sum(widths) + _GAP * (len(widths) - 1)
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        for index, (title, width) in enumerate(zip(titles, widths, strict=True)):
            table.add_column(title, width=width, overflow="fold", justify="right" if index > 1 else "left")
        for row in rows:
            table.add_row(*row)
        return table

    def _line_alone(self, id_: Text, product: Text, units: Text, price: Text, off: Text, after: Text) -> list[Text]:
        amounts = Text.assemble("  ", units, " ", price, "  ", off, "  = ", after, overflow="fold")
        return [Text.assemble(id_, "  ", product, overflow="fold"), amounts]

    def _applied(self, applied: Applied, shares: bool) -> Iterable[RenderableType]:
        yield self.row(_code(applied.code, "green"), self.off(applied.discount_minor), 2)
        yield self._indented(plain(applied.why))
        if shares and applied.lines:
            names = [f"line {one_line(line.id)}" for line in applied.lines]
            amounts = [f"-{self.money(line.discount_minor)}" for line in applied.lines]
            yield self._indented(self._flowing(names, amounts))

    def _flowing(self, names: list[str], amounts: list[str]) -> RenderableType:
        """Short names with their amounts, as many beside each other as there is room for."""
        name_width, amount_width = max(map(cell_len, names)), max(map(cell_len, amounts))
        room = self.width - 4
        if name_width + 1 + amount_width > room:
            return Group(
                *(Text(f"{name} {amount}", overflow="fold") for name, amount in zip(names, amounts, strict=True))
            )
        across = min(len(names), max(1, (room + 3) // (name_width + 1 + amount_width + 3)))
        table = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(across):
            table.add_column(width=name_width)
            table.add_column(width=amount_width + _GAP, justify="left")
        cells = [
            Text(cell)
            for pair in zip(names, (text.rjust(amount_width) for text in amounts), strict=True)
            for cell in pair
        ]
        for start in range(0, len(cells), 2 * across):
            table.add_row(*cells[start : start + 2 * across])
        return table

    def refused(self, refused: Iterable[Refused]) -> Iterable[RenderableType]:
        for one in refused:
            why = Text.assemble(
                _code(one.code, "red"), f"  {explain(one)} ", (f"({one.reason})", "dim"), overflow="fold"
            )
            yield Padding(why, (0, 0, 0, 2), expand=False)
            message = one.detail.get("message")
            if isinstance(message, str) and message:
                yield self._indented(plain(f"what helps: {message}"))

    def _sums(self, result: Result) -> Iterable[RenderableType]:
        amounts = [
            ("subtotal", result.subtotal_minor),
            ("discount", -result.discount_minor),
            ("shipping", result.shipping_minor),
            ("shipping discount", -result.shipping_discount_minor),
            ("gift card", -result.paid_by_gift_card_minor),
        ]
        for name, minor in amounts[:1] + [pair for pair in amounts[1:] if pair[1]]:
            yield self.row(Text(name), Text(self.money(minor)), 0)
        total = Text(f"{result.currency} {self.money(result.total_minor)}", style="bold")
        yield self.row(Text(""), Text("-" * total.cell_len), 0)
        yield self.row(Text("to pay", style="bold"), total, 0)

    def row(self, name: Text, amount: Text, indent: int) -> RenderableType:
        """A name, and an amount at the right edge of the page."""
        amount_width = min(amount.cell_len, self.width * 2 // 3)
        table = Table.grid(padding=(0, _GAP, 0, 0))
        table.add_column(width=self.width - amount_width - _GAP - indent, overflow="fold")
        table.add_column(width=amount_width, overflow="fold", justify="right")
        table.add_row(name, amount)
        return Padding(table, (0, 0, 0, indent), expand=False)

    def _indented(self, inner: RenderableType) -> RenderableType:
        return Padding(inner, (0, 0, 0, 4), expand=False)


def _leases(status: Status) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("lease", "used", "of", "until", "state"):
        table.add_column(title, overflow="fold")
    for lease in status.leases:
        parts = [(lease.used_units, lease.units), (lease.used_minor, lease.minor)]
        used = ", ".join(str(used) for used, granted in parts if granted is not None)
        granted = ", ".join(str(granted) for _, granted in parts if granted is not None)
        state = lease.state if lease.state == "active" else f"{lease.state}: {lease.reason}"
        _add(table, lease.code or lease.voucher_id, used, granted, local_time(lease.expires_at), state)
    return table


def _pairs() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    return table


def _add(table: Table, *cells: str | Text) -> None:
    table.add_row(*(plain(cell) if isinstance(cell, str) else cell for cell in cells))


def local_time(at: datetime) -> str:
    """In the time of the machine's zone, as a clock on the wall shows it."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
