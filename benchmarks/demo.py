"""The main job in under a minute: `make demo`.

Drives the real commands (`tallystick-server`, `tallystick`) as processes of their own, on loopback, in a temporary
folder: three tills keep selling without the server, one of them is killed in the middle of redeeming, and afterwards
everything is matched. Exit code 1 if anything was lost, doubled, mismatched or redeemed beyond a limit.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import uuid_utils
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from benchmarks.audit import Report, audit
from benchmarks.loopback import ServerProcess, server_command, till_command

CATALOGUE = Path(__file__).with_name("catalogue.ndjson")
STORES = ("harbour", "station", "market")
KILLED = "station"
console = Console(highlight=False)


class Sales(msgspec.Struct):
    """What one till's screen has said so far."""

    redeemed: int = 0
    refused: int = 0
    discount_minor: int = 0
    again: int = 0
    contradicted: int = 0
    note: str = "idle"
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    receipts: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)

    def count(self, receipt: dict[str, Any]) -> None:
        before = self.receipts.setdefault(receipt["id"], receipt)
        if before is not receipt:
            self.again += 1
            # what was refused is not kept, and may be refused at another time
            self.contradicted += before["redeemed"] and before != receipt
            return
        self.redeemed += receipt["redeemed"]
        result = receipt["result"]
        self.discount_minor += sum(entry["discount_minor"] for entry in result["applied"])
        for refusal in result["refused"]:
            self.refused += 1
            self.reasons[f"{refusal['code']}: {refusal['reason']}"] += 1
        total = f"{result['total_minor'] / 100:.2f}"
        self.note = f"{', '.join(e['code'] for e in result['applied']) or 'nothing'} applied, to pay {total}"


class Demo:
    def __init__(self, work: Path) -> None:
        self.work = work
        self.data = work / "server"
        self.tills = {store: work / f"till-{store}" for store in STORES}
        self.sales = {store: Sales() for store in STORES}
        self.told: list[str] = []

    def run(self, command: Sequence[str], *, ok: Sequence[int] = (0,)) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in ok:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def till(self, store: str, *arguments: str) -> str:
        return self.run([*till_command(self.tills[store]), *arguments])

    def open_shop(self, server: ServerProcess) -> None:
        step("1", "A server, a catalogue of six vouchers, three tills")
        self.run([*server_command(), "--data", str(self.data), "init"])
        console.print(self.run([*server_command(), "--data", str(self.data), "import", str(CATALOGUE)]).strip())
        url = server.start()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda store: self.enrol(store, url), STORES))
            # while there is a line, what one till holds too much of goes to the others
            for store in (*STORES[:2], *STORES):
                self.till(store, "sync")
            for store, leased in zip(STORES, pool.map(self.leased, STORES), strict=True):
                console.print(f"till [bold]{store}[/] enrolled; it holds {leased} of the 12 uses of LAST12, by lease")

    def enrol(self, store: str, url: str) -> None:
        token = self.run([*server_command(), "--data", str(self.data), "token", "--store", store]).split()[-1]
        self.till(store, "enroll", url, token)

    def leased(self, store: str) -> int:
        status = json.loads(self.till(store, "status", "--json"))
        return sum(lease["units"] or 0 for lease in status["leases"] if lease["state"] == "active")

    def show_preview(self) -> None:
        step("2", "A preview, computed on the till")
        path = self.work / "order.json"
        path.write_bytes(msgspec.json.encode(order("preview", 0)))
        codes = [argument for code in ("last12", "WELCOME10", "COFFEE3", "GARDEN25") for argument in ("--code", code)]
        subprocess.run([*till_command(self.tills["harbour"]), "preview", str(path), *codes], check=True)

    def sell_offline(self) -> None:
        step("4", "The tills keep selling; all three want LAST12, one loses its power")
        with Live(self.board(), console=console, refresh_per_second=12) as live:
            threads = [threading.Thread(target=self.sell, args=(store, live)) for store in STORES]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            live.update(self.board())
        console.print()
        for sentence in self.told:
            console.print(sentence)
        again = self.sales[KILLED].again
        console.print(f"till [bold]{KILLED}[/] was asked again for {again}: the receipt was the one it had given")

    def sell(self, store: str, live: Live) -> None:
        lines = [request(store, number) for number in range(20)]
        if store == KILLED:
            said = self.stream(store, lines, live, kill_after=9)
            self.sales[store].note = "[red]SIGKILL[/]"
            self.told.append(
                f"till [bold]{store}[/] was [red]killed (SIGKILL)[/] redeeming, after {said} of {len(lines)} receipts"
            )
            live.update(self.board())
            time.sleep(1.0)
            # the till cannot know whether the redemption in flight was recorded: it asks again, with the same id
            lines = lines[max(0, said - 1) :]
            self.told.append(f"till [bold]{store}[/] started again; its last customer and the next ask again, same ids")
        self.stream(store, lines, live)
        self.sales[store].note = "closed for today"

    def stream(self, store: str, lines: list[bytes], live: Live, kill_after: int | None = None) -> int:
        """One `tallystick redeem --stream` process; returns how many receipts it printed."""
        command = [*till_command(self.tills[store]), "redeem", "--stream", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            said = 0
            # the killed till has its whole queue of customers at once, so that the signal meets a redemption
            ahead = len(lines) if kill_after is not None else 1
            waiting = iter(lines)
            for line in [next(waiting) for _ in range(ahead)]:
                process.stdin.write(line)
            process.stdin.flush()
            for answer in process.stdout:
                said += 1
                self.sales[store].count(json.loads(answer))
                live.update(self.board())
                if kill_after is not None and said >= kill_after:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return said + sum(1 for rest in process.stdout if self.late(store, rest))
                if kill_after is None:
                    time.sleep(0.05)  # so that the screen can be followed
                if ahead == 1 and (line := next(waiting, b"")):
                    process.stdin.write(line)
                    process.stdin.flush()
                elif ahead == 1:
                    process.stdin.close()
            process.wait()
            return said

    def late(self, store: str, line: bytes) -> bool:
        """A receipt that was printed before the kill and read after it; a torn line is none."""
        if not line.endswith(b"\n"):
            return False
        self.sales[store].count(json.loads(line))
        return True

    def board(self) -> Table:
        table = Table("till", "redeemed", "refused", "discount", "now", expand=True)
        for store, sales in self.sales.items():
            table.add_row(
                store, str(sales.redeemed), str(sales.refused), f"{sales.discount_minor / 100:.2f}", sales.note
            )
        return table

    def look_after_the_power_cut(self) -> None:
        waiting = json.loads(self.till(KILLED, "status", "--json"))["waiting"]
        console.print(f"till [bold]{KILLED}[/] has {waiting} redemptions in its journal that wait to be sent")

    def come_back(self, server: ServerProcess) -> None:
        step("5", "The line is back: all three sync at once, one of them twice")
        server.start()
        running = []
        for store in (*STORES, STORES[0]):
            command = [*till_command(self.tills[store]), "sync", "--json"]
            running.append((store, subprocess.Popen(command, stdout=subprocess.PIPE, text=True)))
        for store, process in running:
            said, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"the sync of till {store} failed")
            report = json.loads(said)
            outcomes = ", ".join(f"{n} {outcome}" for outcome, n in report["outcomes"].items()) or "nothing waited"
            repeat = ", one of its two syncs" if store == STORES[0] else ""
            console.print(f"till [bold]{store}[/]{repeat}: {report['acknowledged']} events acknowledged ({outcomes})")

    def reconcile(self, report: Report) -> bool:
        step("6", "Reconciliation: the tills' journals against the database")
        said = sum(sales.redeemed for sales in self.sales.values())
        table = Table("", "", show_header=False)
        table.add_row("redeemed", f"{report.redeemed} (the tills' screens said {said})")
        reasons: Counter[str] = Counter()
        for sales in self.sales.values():
            reasons.update(sales.reasons)
        table.add_row("refused", "\n".join(f"{n} x {reason}" for reason, n in sorted(reasons.items())))
        table.add_row("flagged", ", ".join(f"{n} x {reason}" for reason, n in report.flagged.items()) or "none")
        table.add_row("leases so far", ", ".join(f"{n} {state}" for state, n in report.leases.items()))
        for use in report.limits:
            table.add_row(f"limit of {use.code}", f"{use.used} used of {use.limit}, {use.leased} still held by tills")
        table.add_row("previewed, settled", f"{report.discount_minor / 100:.2f}, {report.settled_minor / 100:.2f}")
        bad = {"over limit": report.over_limit, "lost": report.lost, "doubled": report.doubled}
        for name, number in (bad | {"mismatched": report.mismatched}).items():
            table.add_row(name, f"[{'red' if number else 'green'} bold]{number}[/]")
        console.print(table)
        for sentence in report.broken:
            console.print(f"[red]broken:[/] {sentence}")
        contradicted = sum(sales.contradicted for sales in self.sales.values())
        return report.holds and said == report.redeemed and not contradicted


def order(store: str, number: int) -> dict[str, Any]:
    """A basket of 66.40 to 74.40 EUR: three coffees, a kettle and a plant."""
    return {
        "id": f"{store}-{number}",
        "currency": "EUR",
        "store_id": store,
        "lines": [
            {"id": "1", "product_id": "espresso", "quantity": 3, "unit_price_minor": 280, "category_ids": ["COFFEE"]},
            {"id": "2", "product_id": "kettle", "quantity": 1, "unit_price_minor": 3900 + 100 * (number % 9)},
            {"id": "3", "product_id": "fern", "quantity": 1, "unit_price_minor": 1900, "category_ids": ["GARDEN"]},
        ],
        "customer": {"id": f"c{number}", "segments": ["premium"] if number % 3 == 0 else []},
    }


def request(store: str, number: int) -> bytes:
    """One line for `tallystick redeem --stream`; its id is made before it is sent, so that a repeat is harmless."""
    codes = (["LAST12", "COFFEE3"], ["SPENDMORE"], ["last12", "WELCOME10"], ["VIP"])[number % 4]
    line = {"id": str(uuid_utils.uuid7()), "order": order(store, number), "codes": codes}
    return msgspec.json.encode(line) + b"\n"


def step(number: str, title: str) -> None:
    console.print()
    console.rule(f"[bold]{number}. {title}", align="left")


def main() -> int:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tallystick-demo-") as work:
        demo = Demo(Path(work))
        server = ServerProcess(demo.data)
        try:
            demo.open_shop(server)
            demo.show_preview()
            step("3", "The network goes away: the server process is stopped")
            server.stop()
            console.print("[red]server stopped[/]")
            demo.sell_offline()
            demo.look_after_the_power_cut()
            demo.come_back(server)
        finally:
            server.stop()
        url = f"sqlite+aiosqlite:///{demo.data / 'tallystick.sqlite3'}"
        holds = demo.reconcile(asyncio.run(audit(url, list(demo.tills.values()))))
    verdict = (
        "[green bold]nothing lost, nothing doubled, no limit exceeded[/]"
        if holds
        else "[red bold]an invariant does not hold, see above[/]"
    )
    console.print(
        Panel(
            f"{verdict}, in {time.monotonic() - started:.0f} s\n\n"
            "Next: [bold]make replay[/] plays half a year of real redemptions through 86 tills;\n"
            "README.md shows ten lines of code for a till and ten for an app."
        )
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
