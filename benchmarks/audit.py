"""The audit: was anything lost, doubled, mismatched, or redeemed beyond a limit?

Reads the tills' journals and the server's database, after the tills have synced, and shares no code with the ledger,
the journal or the engine: raw SQL, `json` and `hashlib`, so that a mistake there is not repeated here.

- `redeemed`: redemptions, by distinct id, in the journals and in the server's table together.
- `lost`: redemptions and voids that are committed in a till's journal and absent on the server, byte for byte.
- `doubled`: effects beyond the first of one redemption on one voucher, counted on the server.
- `over_limit`: units redeemed, less those voided, above a voucher's `limits.total`, plus minor units above its
  `limits.budget_minor`, summed over all vouchers. Counted from journals and server together, so that what a till
  has not sent yet counts too.
- `mismatched`: uses of a voucher whose amount on the till, as stored on the server, and as settled by the server's own
  engine are not all the same. No figure of the server is right only where the redemption names a revision that a
  restore has forgotten, which the server cannot learn again from anybody.
- `broken`: sentences about anything else that must hold and does not: hash chains on both sides, and the equation I1
  of the protocol recomputed from the leases.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

Key = tuple[str, str]
"""A redemption's id and a voucher's id."""


class LimitUse(msgspec.Struct, frozen=True):
    """One voucher with a limit: `used` less what was voided, `leased` is held by devices and not used."""

    code: str
    limit: int
    used: int
    leased: int


class Report(msgspec.Struct, frozen=True):
    redeemed: int
    voided: int
    discount_minor: int
    settled_minor: int
    lost: int
    doubled: int
    over_limit: int
    mismatched: int
    flagged: dict[str, int]
    limits: list[LimitUse]
    leases: dict[str, int]
    broken: list[str]

    @property
    def holds(self) -> bool:
        return not (self.lost or self.doubled or self.over_limit or self.mismatched or self.broken)


class _Journal(msgspec.Struct):
    """What one till's journal says, read with nothing but sqlite3 and json."""

    device: str
    events: dict[int, tuple[bytes, str]]

    def envelopes(self) -> list[dict[str, Any]]:
        return [json.loads(raw) for raw, _ in self.events.values()]


def read_journal(directory: Path) -> _Journal:
    """The journal of a till directory; opened read-only, a till may be running."""
    device = json.loads((directory / "config.json").read_bytes())["device"]
    connection = sqlite3.connect(f"file:{directory / 'journal.sqlite3'}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT seq, envelope, hash FROM events ORDER BY seq").fetchall()
    finally:
        connection.close()
    return _Journal(device, {seq: (bytes(envelope), digest) for seq, envelope, digest in rows})


async def _read_server(url: str) -> dict[str, list[dict[str, Any]]]:
    queries = {
        "events": "SELECT device_id, branch, seq, envelope, hash FROM events ORDER BY device_id, branch, seq",
        # without what was voided before it came, of which only the id is kept
        "redemptions": "SELECT issuer, redemption_id FROM redemptions WHERE online = 0 OR content_sha256 <> ''",
        "uses": "SELECT issuer, redemption_id, voucher_id, units, minor, settled_minor, revision_sha256"
        " FROM redemption_uses",
        "pools": 'SELECT voucher_id, measure, "limit", free, online, uncovered, voided FROM pools',
        "leases": "SELECT voucher_id, units, minor, known_units, known_minor, state FROM leases",
        "vouchers": "SELECT v.id, v.code, r.json FROM vouchers v JOIN voucher_revisions r"
        " ON r.voucher_id = v.id AND r.revision = v.revision",
        "flags": "SELECT reason, count(*) AS n FROM flags GROUP BY reason",
    }
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            return {
                name: [dict(row) for row in (await connection.execute(text(query))).mappings()]
                for name, query in queries.items()
            }
    finally:
        await engine.dispose()


async def audit(database_url: str, tills: Sequence[Path], forgotten: Collection[tuple[str, str]] = ()) -> Report:
    """Compares the journals under `tills` with the database at `database_url` (an async SQLAlchemy URL).

    `forgotten`: voucher ids and digests of the revisions that a restore of the server has lost.
    """
    server = await _read_server(database_url)
    journals = [read_journal(till) for till in tills]
    broken = _chains(journals, server["events"]) + _pools(server["pools"], server["leases"])

    on_tills: dict[Key, int] = {}
    voids: dict[Key, tuple[int, int]] = {}
    whole: set[str] = set()
    for journal in journals:
        _collect(journal, on_tills, voids, whole)
    effects = Counter((row["redemption_id"], row["voucher_id"]) for row in server["uses"])
    settled = {(row["redemption_id"], row["voucher_id"]): row for row in server["uses"]}
    # what only the server knows, an online redemption, counts against the limit as well
    taken = {key: int(row["minor"]) for key, row in settled.items()} | on_tills
    voids |= {key: (1, minor) for key, minor in taken.items() if key[0] in whole}

    return Report(
        redeemed=len({redemption for redemption, _ in taken} | {row["redemption_id"] for row in server["redemptions"]}),
        voided=len({redemption for redemption, _ in voids}),
        discount_minor=sum(taken.values()),
        settled_minor=sum(int(row["settled_minor"]) for row in settled.values() if row["settled_minor"] is not None),
        lost=_lost(journals, server["events"]),
        doubled=sum(n - 1 for n in effects.values()),
        over_limit=_over_limit(server["vouchers"], taken, voids),
        mismatched=_mismatched(on_tills, server["uses"], forgotten),
        flagged={row["reason"]: row["n"] for row in server["flags"]},
        limits=_limits(server["vouchers"], server["leases"], taken, voids),
        leases=dict(Counter(str(row["state"]) for row in server["leases"])),
        broken=broken,
    )


def _collect(journal: _Journal, taken: dict[Key, int], voids: dict[Key, tuple[int, int]], whole: set[str]) -> None:
    """`whole`: redemptions of which all was voided without the till knowing what that was, as no answer had come."""
    for envelope in journal.envelopes():
        if envelope["type"] == "void" and not envelope["uses"]:
            whole.add(envelope["ref"])
        for use in envelope["uses"]:
            if envelope["type"] == "redeem":
                taken[envelope["id"], use["voucher_id"]] = use["minor"]
            elif envelope["type"] == "void":
                key = envelope["ref"], use["voucher_id"]
                units, minor = voids.get(key, (0, 0))
                # a second void of one redemption gives nothing back
                voids[key] = (min(1, units + use["units"]), min(taken.get(key, 0), minor + use["minor"]))


def _lost(journals: Sequence[_Journal], events: Sequence[Mapping[str, Any]]) -> int:
    stored = {(row["device_id"], bytes(row["envelope"])) for row in events}
    return sum(
        json.loads(envelope)["type"] in ("redeem", "void") and (journal.device, envelope) not in stored
        for journal in journals
        for envelope, _ in journal.events.values()
    )


def _mismatched(
    on_tills: Mapping[Key, int], uses: Sequence[Mapping[str, Any]], forgotten: Collection[tuple[str, str]]
) -> int:
    no_figure = {
        (row["issuer"], row["redemption_id"])
        for row in uses
        if (row["voucher_id"], row["revision_sha256"]) in forgotten
    }
    count = 0
    for row in uses:
        on_till = on_tills.get((row["redemption_id"], row["voucher_id"]), row["minor"])
        without = row["settled_minor"] is None and (row["issuer"], row["redemption_id"]) in no_figure
        count += row["minor"] != on_till or (row["settled_minor"] != on_till and not without)
    return count


def _uses(taken: Mapping[Key, int], voids: Mapping[Key, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Units and minor by voucher, less what was voided."""
    total: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for key, minor in taken.items():
        units_back, minor_back = voids.get(key, (0, 0))
        units, spent = total[key[1]]
        total[key[1]] = (units + 1 - units_back, spent + minor - minor_back)
    return total


def _over_limit(
    vouchers: Sequence[Mapping[str, Any]], taken: Mapping[Key, int], voids: Mapping[Key, tuple[int, int]]
) -> int:
    uses = _uses(taken, voids)
    over = 0
    for row in vouchers:
        limits = json.loads(row["json"]).get("limits") or {}
        for allowed, used in zip((limits.get("total"), limits.get("budget_minor")), uses[row["id"]], strict=True):
            over += 0 if allowed is None else max(0, used - allowed)
    return over


def _limits(
    vouchers: Sequence[Mapping[str, Any]],
    leases: Sequence[Mapping[str, Any]],
    taken: Mapping[Key, int],
    voids: Mapping[Key, tuple[int, int]],
) -> list[LimitUse]:
    uses = _uses(taken, voids)
    held: Counter[str] = Counter()
    for lease in leases:
        if lease["state"] == "open":
            held[lease["voucher_id"]] += (lease["units"] or 0) - (lease["known_units"] or 0)
    return [
        LimitUse(row["code"], total, uses[row["id"]][0], held[row["id"]])
        for row in vouchers
        if (total := (json.loads(row["json"]).get("limits") or {}).get("total")) is not None
    ]


def _chains(journals: Sequence[_Journal], events: Sequence[Mapping[str, Any]]) -> list[str]:
    broken: list[str] = []
    for journal in journals:
        seqs = list(journal.events)
        if seqs != list(range(seqs[0], seqs[0] + len(seqs)) if seqs else []):
            broken.append(f"the journal of {journal.device} has gaps")
        for (_, before), (envelope, digest) in zip(
            list(journal.events.values()), list(journal.events.values())[1:], strict=False
        ):
            if hashlib.sha256(bytes.fromhex(before) + envelope).hexdigest() != digest:
                broken.append(f"the hash chain of {journal.device} does not hold")
                break
        main = [row for row in events if row["device_id"] == journal.device and row["branch"] == 0]
        if [row["seq"] for row in main] != list(range(1, len(main) + 1)):
            broken.append(f"the server has gaps in what {journal.device} sent")
        # of a forked device every branch is kept: a journal is one of them
        kept = {(row["seq"], row["hash"]) for row in events if row["device_id"] == journal.device}
        for row in main:
            mine = journal.events.get(row["seq"])
            if mine is not None and (row["seq"], mine[1]) not in kept:
                broken.append(f"till and server disagree about event {row['seq']} of {journal.device}")
                break
    return broken


def _pools(pools: Sequence[Mapping[str, Any]], leases: Sequence[Mapping[str, Any]]) -> list[str]:
    """I1, from the leases themselves: F + O + X + q(open, burned) + u(closed) + k(released) - V = L."""
    held: Counter[Key] = Counter()
    for row in leases:
        for measure in ("units", "minor"):
            if row[measure] is None:
                continue  # the limit is newer than the lease: what was used of it is in `uncovered`
            share = row[measure] if row["state"] in ("open", "burned") else row[f"known_{measure}"]
            held[row["voucher_id"], measure] += share
    broken = []
    for row in pools:
        total = row["free"] + row["online"] + row["uncovered"] - row["voided"] + held[row["voucher_id"], row["measure"]]
        if total != row["limit"]:
            broken.append(
                f"voucher {row['voucher_id']}: {row['measure']} add up to {total}, the limit is {row['limit']}"
            )
    return broken
