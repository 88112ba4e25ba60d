"""What a cashier reads: results, receipts and the status, on a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tallystick_client.reports import Receipt, Status, SyncReport, VoidReceipt
from tallystick_shared.engine import Reason, Refused, Result
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


def show_result(console: Console, order: Order, result: Result) -> None:
    console.print(_result(order, result))


def show_receipt(console: Console, order: Order, receipt: Receipt) -> None:
    console.print(_result(order, receipt.result))
    if receipt.redeemed:
        where = "at the server" if receipt.online else "on this till"
        console.print(Text(f"REDEEMED {where}  {_time(receipt.at)}", style="bold green"))
        console.print(Text(f"receipt {receipt.id}", style="dim"))
    else:
        console.print(Text("NOTHING REDEEMED", style="bold red"))


def show_void(console: Console, receipt: VoidReceipt) -> None:
    money = f"{format_minor(receipt.refund_minor, receipt.currency)} {receipt.currency}"
    console.print(Text(f"VOIDED  give back {money}", style="bold green"))
    console.print(Text(f"receipt {receipt.id}", style="dim"))


def show_sync(console: Console, report: SyncReport) -> None:
    outcomes = ", ".join(f"{count} {name}" for name, count in report.outcomes.items()) or "nothing waited"
    table = _plain()
    table.add_row("acknowledged", f"{report.acknowledged} ({outcomes})")
    table.add_row("leases", f"{report.leases_granted} granted, {report.leases_closed} closed")
    table.add_row("vouchers", f"version {report.bundle_version}" if report.bundle_version else "none")
    table.add_row("till", report.state)
    console.print(table)


def show_status(console: Console, status: Status) -> None:
    good = status.state == "active" and status.freshness == "fresh"
    table = _plain()
    table.add_row("till", f"{status.name}, store {status.store}, scope {status.scope}")
    table.add_row("state", Text(f"{status.state}, {status.freshness}", style="green" if good else "yellow"))
    expires = "" if status.bundle_expires_at is None else f", good until {_time(status.bundle_expires_at)}"
    table.add_row("vouchers", f"{status.bundle_vouchers} in version {status.bundle_version}{expires}")
    table.add_row("last sync", "never" if status.last_sync_at is None else _time(status.last_sync_at))
    table.add_row("waiting", f"{status.waiting} events ({status.waiting_redemptions} redemptions) to be sent")
    table.add_row("journal", f"{status.head} written, {status.acknowledged} acknowledged, {status.durable} durable")
    table.add_row("server", status.server)
    table.add_row("device", status.device)
    console.print(table)
    if status.leases:
        console.print(_leases(status))
    for flagged in status.flagged:
        console.print(Text(f"event {flagged.seq} {flagged.outcome}: {', '.join(flagged.reasons)}", style="yellow"))
    for note in status.notes:
        console.print(Text(f"! {note}", style="yellow"))


def explain(refused: Refused) -> str:
    """Why a code was refused, for a cashier to read out."""
    detail = refused.detail.get("message")
    if refused.reason is Reason.CUSTOMER_LIMIT_REACHED and refused.detail.get("field") == "customer.id":
        return "only for a known customer: the order has none"
    return f"{REASONS[refused.reason]} ({detail})" if isinstance(detail, str) and detail else REASONS[refused.reason]


def _result(order: Order, result: Result) -> RenderableType:
    def money(minor: int) -> str:
        return format_minor(minor, result.currency)

    lines = Table(box=None, pad_edge=False)
    for title, justify in (("line", "left"), ("", "right"), ("price", "right"), ("off", "right")):
        lines.add_column(title, justify=justify)  # type: ignore[arg-type] # rich's own literal type
    for line, taken in zip(order.lines, result.lines, strict=True):
        off = Text(f"-{money(taken.discount_minor)}" if taken.discount_minor else "", style="green")
        lines.add_row(line.product_id, f"{line.quantity} x", money(line.unit_price_minor), off)
    codes = _plain()
    for applied in result.applied:
        codes.add_row(Text(applied.code, style="bold green"), f"-{money(applied.discount_minor)}", applied.why)
    for refused in result.refused:
        codes.add_row(Text(refused.code, style="bold red"), "", explain(refused))
    sums = _plain()
    sums.add_row("subtotal", money(result.subtotal_minor))
    for name, minor in (
        ("discount", -result.discount_minor),
        ("shipping", result.shipping_minor),
        ("shipping discount", -result.shipping_discount_minor),
        ("gift card", -result.paid_by_gift_card_minor),
    ):
        if minor:
            sums.add_row(name, money(minor))
    sums.add_row(
        Text("to pay", style="bold"), Text(money(result.total_minor), style="bold"), Text(result.currency, style="bold")
    )
    sums.columns[1].justify = "right"
    return Group(lines, "", codes, "", sums) if result.applied or result.refused else Group(lines, "", sums)


def _leases(status: Status) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("lease", "used", "of", "until", "state"):
        table.add_column(title)
    for lease in status.leases:
        parts = [(lease.used_units, lease.units), (lease.used_minor, lease.minor)]
        used = ", ".join(str(used) for used, granted in parts if granted is not None)
        granted = ", ".join(str(granted) for _, granted in parts if granted is not None)
        state = lease.state if lease.state == "active" else f"{lease.state}: {lease.reason}"
        table.add_row(lease.code or lease.voucher_id, used, granted, _time(lease.expires_at), state)
    return table


def _plain() -> Table:
    return Table.grid(padding=(0, 2))


def _time(at: datetime) -> str:
    """In the time of the machine's zone, as a clock on the wall shows it."""
    return f"{at.astimezone():%Y-%m-%d %H:%M}"
