"""Half a year of real redemptions, through real tills that are offline for days: `make replay`.

One server, one till for each store, every till a real client with its own store on disk, sync over real HTTP. Events
are played sorted by `at`, then by line. Each store has one contact every `--offline-days` days, staggered by the seed,
and none between: requests made outside a contact are counted and must be 0. At the end every till has one more contact.

The last line is one JSON object:

- `events`: lines of the redemptions file; `redeemed` + the sum of `refused` is `events`
- `redeemed`: redemptions that a till acknowledged and the audit found
- `refused`: by reason, as the tills said it
- `flagged`: by reason, what waits for a person on the server
- `discount_minor`: what customers got, in minor units
- `over_limit`, `lost`, `doubled`, `mismatched`: must be 0; defined and computed by `benchmarks.audit`, which reads the
  server's database and the tills' journals and shares no code with the ledger
- `tills`, `seconds`

Exit code 1 if one of the four is not 0, if anything else the audit checks does not hold, or if a request was made
inside a spell.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress

from benchmarks.audit import Report, audit
from benchmarks.generate import generate
from benchmarks.loopback import CountingApp, server_thread
from tallystick_client import Till
from tallystick_server.operations import create_token, import_vouchers, initialise
from tallystick_server.settings import Settings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "complete-journey"
console = Console(stderr=True)


class Event(msgspec.Struct, frozen=True):
    """One line of the redemptions file."""

    at: datetime
    store_id: str
    code: str
    order: dict[str, Any]


class ReplayClock:
    """The data's time, for server and tills alike."""

    def __init__(self, start: datetime) -> None:
        self._start = self._now = start

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    def boot_id(self) -> str:
        return "replay"

    def advance_to(self, at: datetime) -> None:
        self._now = max(self._now, at)


def read_events(path: Path) -> list[Event]:
    """The lines of a redemptions file, plain or gzip, sorted by `at`, then by line."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:
        events = [msgspec.json.decode(line, type=Event) for line in lines if line.strip()]
    if not events:
        raise SystemExit(f"replay: {path} holds no redemptions")
    return sorted(events, key=lambda event: event.at)


def contacts(stores: list[str], start: datetime, end: datetime, days: int, seed: int) -> Iterator[tuple[datetime, str]]:
    """When each store has the line: every `days` days, its phase drawn from the seed; and all of them at the end."""
    chance = random.Random(seed)
    spell = timedelta(days=days)
    planned = []
    for store in stores:
        at = start + timedelta(seconds=chance.randrange(int(spell.total_seconds())))
        while at < end:
            planned.append((at, store))
            at += spell
    yield from sorted(planned)
    yield from ((end + timedelta(minutes=1), store) for store in stores)


class Replay:
    def __init__(
        self, work: Path, events: list[Event], vouchers: Path, days: int, seed: int, database: str | None
    ) -> None:
        self.work, self.events, self.vouchers, self.days, self.seed = work, events, vouchers, days, seed
        self.start = events[0].at.astimezone(UTC) - timedelta(days=days)
        self.end = events[-1].at.astimezone(UTC) + timedelta(seconds=1)
        self.clock = ReplayClock(self.start)
        self.settings = Settings(
            data=work / "server",
            database_url=database or "",
            default_currency=events[0].order["currency"],
            # a till that keeps its contacts is never too old, whatever N is
            manifest_ttl_s=2 * days * 86_400,
            offline_s=2 * days * 86_400,
            lease_ttl_s=max(28, 4 * days) * 86_400,
        )
        self.refused: Counter[str] = Counter()
        self.redeemed = 0
        self.tills: dict[str, Till] = {}

    async def prepare(self) -> None:
        await initialise(self.settings, now=self.start)
        count = await import_vouchers(self.settings, self.vouchers, now=self.start)
        console.print(f"published {count} vouchers of {self.vouchers.name}")

    async def tokens(self, stores: list[str]) -> dict[str, str]:
        """A token for each store, good until after its first contact."""
        ttl_s = (self.days + 1) * 86_400
        return {s: await create_token(self.settings, store_id=s, ttl_s=ttl_s, now=self.start) for s in stores}

    def play(self, url: str, app: CountingApp, tokens: dict[str, str]) -> None:
        """Enrols each till at its first contact, then plays contacts and events in the order of time."""
        due = contacts(sorted(tokens), self.start, self.end, self.days, self.seed)
        upcoming: tuple[datetime, str] | None = next(due)
        app.closed = True
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("redemptions", total=len(self.events))
            for event in [*self.events, None]:
                at = event.at if event is not None else datetime.max.replace(tzinfo=UTC)
                while upcoming is not None and upcoming[0] <= at:
                    self.contact(upcoming[0], upcoming[1], url, app, tokens)
                    upcoming = next(due, None)
                if event is not None:
                    self.redeem(event)
                    progress.advance(task)

    def contact(self, at: datetime, store: str, url: str, app: CountingApp, tokens: dict[str, str]) -> None:
        self.clock.advance_to(at)
        app.closed = False
        if store not in self.tills:
            directory = self.work / "tills" / store
            self.tills[store] = Till.enroll(directory, url, tokens[store], name=f"till-{store}", clock=self.clock)
        self.tills[store].sync()
        app.closed = True

    def redeem(self, event: Event) -> None:
        self.clock.advance_to(event.at)
        receipt = self.tills[event.store_id].redeem(event.order, [event.code])
        if receipt.redeemed:
            self.redeemed += 1
        for refused in receipt.result.refused:
            self.refused[refused.reason.value] += 1

    def line(self, report: Report, seconds: float) -> dict[str, Any]:
        return {
            "events": len(self.events),
            "redeemed": report.redeemed,
            "refused": dict(sorted(self.refused.items())),
            "flagged": dict(sorted(report.flagged.items())),
            "discount_minor": report.discount_minor,
            "over_limit": report.over_limit,
            "lost": report.lost,
            "doubled": report.doubled,
            "mismatched": report.mismatched,
            "tills": len(self.tills),
            "seconds": round(seconds, 1),
        }


def run(replay: Replay) -> int:
    started = time.perf_counter()
    stores = sorted({event.store_id for event in replay.events})
    asyncio.run(replay.prepare())
    tokens = asyncio.run(replay.tokens(stores))
    console.print(
        f"{len(replay.events)} redemptions at {len(stores)} stores, {replay.start:%Y-%m-%d} to {replay.end:%Y-%m-%d}, "
        f"each store offline for {replay.days} days at a time"
    )
    with server_thread(replay.settings, replay.clock.now) as (url, app):
        replay.play(url, app, tokens)
    directories = [replay.work / "tills" / store for store in replay.tills]
    for till in replay.tills.values():
        till.close()
    report = asyncio.run(audit(replay.settings.database_url, directories))
    for sentence in report.broken:
        console.print(f"[red]broken:[/] {sentence}")
    console.print(f"{app.requests} requests, {app.requests_while_closed} of them inside a spell")
    if replay.redeemed != report.redeemed:
        console.print(f"[red]broken:[/] tills acknowledged {replay.redeemed}, the audit found {report.redeemed}")
    print(json.dumps(replay.line(report, time.perf_counter() - started)))
    return 0 if report.holds and not app.requests_while_closed and replay.redeemed == report.redeemed else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description="Replay real redemptions.")
    parser.add_argument("--vouchers", type=Path, help="vouchers, NDJSON or gzip")
    parser.add_argument("--redemptions", type=Path, help="lines of {at, store_id, code, order}, NDJSON or gzip")
    parser.add_argument("--offline-days", type=int, default=3, help="days between two contacts of a store (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="staggers the contacts (default 1)")
    parser.add_argument("--database", help="an SQLAlchemy URL of an empty database; default: SQLite in a new folder")
    options = parser.parse_args()
    if (options.vouchers is None) != (options.redemptions is None):
        parser.error("--vouchers and --redemptions go together")
    if options.offline_days < 1:
        parser.error("--offline-days must be 1 or more")
    with tempfile.TemporaryDirectory(prefix="tallystick-replay-") as work:
        vouchers, redemptions = options.vouchers, options.redemptions
        if vouchers is None:
            vouchers, redemptions = DATA / "vouchers.ndjson.gz", DATA / "redemptions.ndjson.gz"
            if not redemptions.exists():
                vouchers, redemptions = generate(Path(work), seed=options.seed)
                console.print(f"[yellow]{DATA} is not there: this is a generated data set of the same shape[/]")
        for path in (vouchers, redemptions):
            if not path.is_file():
                parser.error(f"{path} is not a file")
        events = read_events(redemptions)
        return run(Replay(Path(work), events, vouchers, options.offline_days, options.seed, options.database))


if __name__ == "__main__":
    sys.exit(main())
