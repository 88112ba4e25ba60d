"""Product and model compared: a till's status after its steps, the server's tables, and the whole at the end."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from datetime import datetime, timedelta

from benchmarks.audit import Report, audit
from tests.proof.states_books import Book
from tests.proof.states_pair import Differs, Pair, same
from tests.proof.states_till import Drawer
from tests.proof.states_world import OFFLINE_S


def compare_till(pair: Pair, name: str) -> None:
    """What `status` says of a till."""
    drawer, status = pair.drawers[name], pair.world.till(name).status()
    now = drawer.now(pair.reading(name))
    product = {
        "head": status.head, "acknowledged": status.acknowledged, "durable": status.durable, "state": status.state,
        "waiting": status.waiting, "redemptions waiting": status.waiting_redemptions,
        "minor waiting": status.waiting_minor, "bundle": status.bundle_version, "time": status.at,
        "clock anomalies": status.clock_anomalies, "freshness": status.freshness,
        "leases": {one.id: (one.voucher_id, one.units, one.minor, one.used_units, one.used_minor, one.state)
                   for one in status.leases},
        "flagged": [(one.seq, one.outcome, tuple(one.reasons)) for one in status.flagged],
    }  # fmt: skip
    model = {
        "head": drawer.head, "acknowledged": drawer.acknowledged, "durable": drawer.durable, "state": drawer.state,
        "waiting": drawer.head - drawer.acknowledged, "redemptions waiting": len(drawer.waiting),
        "minor waiting": drawer.waiting_minor, "bundle": drawer.version, "time": now.at,
        "clock anomalies": sum(event.kind == "clock_anomaly" for event in drawer.events),
        "freshness": _freshness(drawer, now.latest),
        "leases": {one.id: (one.voucher, one.granted.get("units"), one.granted.get("minor"), one.used["units"],
                            one.used["minor"], one.state)
                   for one in drawer.leases.values() if one.state != "closed"},
        "flagged": [(event.seq, event.outcome, event.reasons) for event in reversed(drawer.events)
                    if event.outcome == "flagged" and event.seq <= drawer.acknowledged],
    }  # fmt: skip
    for field, value in product.items():
        same(f"status of {name}: {field}", value, model[field])


def _freshness(drawer: Drawer, latest: datetime) -> str:
    if drawer.expires_at is None:
        return "none"
    if latest <= drawer.expires_at:
        return "fresh"
    return "stale" if latest <= drawer.expires_at + timedelta(seconds=OFFLINE_S) else "too_old"


def compare_server(pair: Pair) -> None:
    """Pools, leases and uses as they are stored."""
    server = pair.server
    file = pair.world.settings.sqlite_file
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        pools = {
            (voucher, measure): tuple(rest)
            for voucher, measure, *rest in database.execute(
                'SELECT voucher_id, measure, "limit", free, online, uncovered, voided FROM pools'
            )
        }
        leases = {
            one: tuple(rest)
            for one, *rest in database.execute("SELECT id, state, known_units, known_minor FROM leases")
        }
        uses = {
            (issuer, redemption, voucher): tuple(rest)
            for issuer, redemption, voucher, *rest in database.execute(
                "SELECT issuer, redemption_id, voucher_id, minor, cover, voided_units, voided_minor"
                " FROM redemption_uses"
            )
        }
        customers = {
            (voucher, customer): units
            for voucher, customer, units in database.execute("SELECT * FROM customer_uses WHERE units <> 0")
        }
    same("pools", pools, {
        (book.id, measure): (pool.limit, pool.free, pool.online, pool.uncovered, pool.voided)
        for book in server.books.values() for measure, pool in book.pools.items()
    })  # fmt: skip
    same("leases", leases, {
        one.id: (one.state, one.known["units"], one.known["minor"]) for one in server.leases.values()
    })  # fmt: skip
    same("uses", uses, {
        (device, redemption_id, use.voucher): (use.minor, use.cover, use.voided["units"], use.voided["minor"])
        for (device, redemption_id), redemption in server.redemptions.items() for use in redemption.uses.values()
    })  # fmt: skip
    same("customers", customers, {key: units for key, units in server.customers.items() if units})


def compare_operator(pair: Pair) -> None:
    """What an operator is shown: vouchers and their pools, devices, the flagged queue, the status."""
    server, ask = pair.server, pair.world.operate
    shown = {
        one["id"]: (
            one["voucher"].get("status", "active"), one["deactivated_at"] is not None,
            {pool["measure"]: (pool["free"], pool["held"]) for pool in one["pools"]},
        )
        for one in ask("GET", "/v1/vouchers")["vouchers"]
    }  # fmt: skip
    same("vouchers shown", shown, {
        book.id: (book.terms.status, book.dropped_at is not None,
                  {measure: (pool.free, exposure(pair, book, measure)) for measure, pool in book.pools.items()})
        for book in server.books.values()
    })  # fmt: skip
    devices = {one["id"]: (one["state"], one["acknowledged_seq"]) for one in ask("GET", "/v1/devices")["devices"]}
    same("devices shown", devices, {one.id: (one.state, one.seq) for one in server.devices.values()})
    flagged = [(one["device_id"], one["seq"], one["reason"]) for one in ask("GET", "/v1/flagged?limit=500")["flagged"]]
    same("the flagged queue", sorted(flagged), sorted(server.flags))
    status = ask("GET", "/v1/status")
    counts = {
        "leases": Counter(lease.state for lease in server.leases.values()),
        "devices": Counter(device.state for device in server.devices.values()),
        "events": Counter(event.outcome for device in server.devices.values() for event in device.events),
    }
    for field, count in counts.items():
        same(f"status of the server: {field}", status[field], dict(count))
    overdrawn = sum(any(pool.free < 0 for pool in book.pools.values()) for book in server.books.values())
    same("status of the server: overdrawn", status["pools_overdrawn"], overdrawn)
    same("status of the server: flagged", status["flagged_open"], len(server.flags))


def exposure(pair: Pair, book: Book, measure: str) -> int:
    """What devices hold of a limit."""
    return sum(
        lease.granted[measure]
        for lease in pair.server.leases.values()
        if lease.voucher == book.id and lease.held and measure in lease.granted
    )


def finish(pair: Pair) -> None:
    """Every till syncs until nothing waits, and the auditor goes over journals and database."""
    for name, drawer in pair.drawers.items():
        if drawer.head or drawer.bundle is not None:
            pair.sync(name, {})
            if drawer.not_before is not None:  # it was asked to wait, and now writes down since when it does
                pair.world.pass_time(25 * 3600)
                pair.sync(name, {})
            compare_till(pair, name)
            pair.tally.tills += 1
            pair.tally.converged += drawer.acknowledged == drawer.head
    compare_server(pair)
    compare_operator(pair)
    url = f"sqlite+aiosqlite:///{pair.world.settings.sqlite_file}"
    used = [pair.world.base / name for name, drawer in pair.drawers.items() if drawer.head]
    judge(pair, pair.world.run(audit(url, used)))


def judge(pair: Pair, report: Report) -> None:
    """The auditor's words against the model's: what is not promised is computed, to the unit."""
    tally, server = pair.tally, pair.server
    tally.acknowledged += report.redeemed
    tally.lost += report.lost
    tally.doubled += report.doubled
    same("the auditor: broken", report.broken, [])
    reused = sum(
        use.minor != done.uses[use.voucher].minor
        for drawer in pair.drawers.values()
        for event in drawer.events
        if event.kind == "redeem" and "IDENTIFIER_REUSED" in event.reasons
        and (done := server.redemptions.get((drawer.device, event.id))) is not None
        for use in event.uses if use.voucher in done.uses
    )  # fmt: skip
    tally.mismatched += max(0, report.mismatched - reused)
    for book in server.books.values():
        for measure, pool in book.pools.items():
            over = _net(pair, book.id, measure) - pool.limit
            excused = book.lowered or pool.uncovered
            if over > 0 and not excused:
                tally.over_limit += over
            if pool.free < 0 and not excused:
                raise Differs(f"{book.terms.code}: {pool.free} {measure} are free")
    found = {"lost": report.lost, "doubled": report.doubled, "mismatched": tally.mismatched,
             "beyond a limit": tally.over_limit}  # fmt: skip
    same("the auditor: nothing wrong", found, dict.fromkeys(found, 0))


def _net(pair: Pair, voucher: str, measure: str) -> int:
    """What was redeemed of a voucher, less what was voided, by the model's own effects."""
    uses = (one.uses.get(voucher) for one in pair.server.redemptions.values())
    return sum(use.had(measure) - use.voided[measure] for use in uses if use is not None)
