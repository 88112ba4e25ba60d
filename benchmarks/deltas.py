"""What one changed voucher costs a server and a till, next to the snapshot of the whole scope, in one run.

    python -m benchmarks.deltas [--vouchers 100000] [--changes 9]

A real server in a process of its own, on SQLite, and a real till in this one. The till fetches the snapshot; then one
voucher is revised and the till syncs, several times over, of which the median counts. Bytes written are those of the
process (`wchar` of /proc/PID/io): what SQLite and the cache wrote, journals included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks.loopback import ServerProcess, server_command
from tallystick_client.drivers import Till

SEED = 1


class Cost(msgspec.Struct, frozen=True):
    """Of one sync: the manifest and blobs on the wire, and who took how long and wrote how much."""

    server_s: float
    server_bytes: int
    wire_bytes: int
    till_s: float
    till_bytes: int


class Wire(httpx2.BaseTransport):
    """The line to the server, with a look at what went over it and at what the server wrote meanwhile."""

    def __init__(self, server_pid: int) -> None:
        self._inner, self._pid = httpx2.HTTPTransport(), server_pid
        self.start()

    def start(self) -> None:
        self.all_s = self.manifest_s = 0.0
        self.manifest_bytes = self.wire_bytes = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        written, began = written_by(self._pid), time.perf_counter()
        response = self._inner.handle_request(request)
        raw = b"".join(response.iter_raw())
        response.close()
        took = time.perf_counter() - began
        self.all_s += took
        path = request.url.path
        if path.endswith("/manifest"):
            self.manifest_s += took
            self.manifest_bytes += written_by(self._pid) - written
        if path.endswith("/manifest") or "/blobs/" in path:
            self.wire_bytes += len(raw)
        return httpx2.Response(response.status_code, headers=response.headers, stream=httpx2.ByteStream(raw))

    def close(self) -> None:
        self._inner.close()


def written_by(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def write_vouchers(path: Path, count: int) -> list[dict[str, Any]]:
    """Of the shape of the real data set: one coupon of a campaign on some products, for some customers."""
    chance = random.Random(SEED)
    made = []
    for number in range(count):
        campaign = f"campaign-{number % 27 + 1}"
        products = sorted({str(chance.randrange(1, 20_000)) for _ in range(chance.randrange(1, 12))})
        made.append(
            {
                "code": f"{50_000_000_000 + number}-{number % 27 + 1}",
                "campaign_id": campaign,
                "currency": "USD",
                "discount": {"type": "fixed", "amount_minor": 100, "items": {"product_ids": products}},
                "when": {"field": "customer.segments", "op": "contains", "value": campaign},
                "valid_until": "2038-01-01T00:00:00Z",
            }
        )
    path.write_text("".join(json.dumps(one) + "\n" for one in made))
    return made


def synced(till: Till, wire: Wire) -> Cost:
    wire.start()
    written, began = written_by(os.getpid()), time.perf_counter()
    till.sync()
    took = time.perf_counter() - began
    return Cost(
        server_s=wire.manifest_s,
        server_bytes=wire.manifest_bytes,
        wire_bytes=wire.wire_bytes,
        till_s=took - wire.all_s,
        till_bytes=written_by(os.getpid()) - written,
    )


def revise(url: str, operator_key: str, document: dict[str, Any]) -> None:
    headers = {"Authorization": f"Bearer {operator_key}", "Content-Type": "application/json"}
    (found,) = httpx2.get(f"{url}/v1/vouchers", params={"code": document["code"]}, headers=headers).json()["vouchers"]
    answer = httpx2.put(f"{url}/v1/vouchers/{found['id']}", content=json.dumps(document), headers=headers)
    answer.raise_for_status()


def measure(directory: Path, count: int, changes: int) -> tuple[Cost, list[Cost], Cost]:
    """The first sync of a till, one for each change, and one with nothing new."""
    data, vouchers = directory / "server", directory / "vouchers.ndjson"

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [*server_command(), "--data", str(data), *arguments], check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    operator_key = command("init").splitlines()[-1]
    documents = write_vouchers(vouchers, count)
    print(command("import", str(vouchers)))
    with ServerProcess(data) as server:
        wire = Wire(server.pid)
        with Till.enroll(directory / "till", server.url, command("token", "--store", "1"), transport=wire) as till:
            first = synced(till, wire)
            assert till.status().bundle_vouchers == count
            found = []
            for number in range(changes):
                document = documents[number * 7]
                document["discount"]["amount_minor"] = 200 + number
                revise(server.url, operator_key, document)
                found.append(synced(till, wire))
            return first, found, synced(till, wire)


def main() -> None:
    parser = argparse.ArgumentParser(description="What one changed voucher costs, next to the snapshot.")
    parser.add_argument("--vouchers", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=9)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tallystick-deltas-") as directory:
        first, found, nothing = measure(Path(directory), asked.vouchers, asked.changes)
    title = f"One change among {asked.vouchers:,} vouchers: median of {asked.changes}, next to the snapshot"
    table = Table("measured", "one change", "the snapshot", "snapshot / change", "nothing new", title=title)
    for name, field, shown in (
        ("server: time until the manifest is answered", "server_s", "{:.4f} s"),
        ("server: bytes written for it", "server_bytes", "{:,.0f}"),
        ("wire: manifest and blobs, bytes", "wire_bytes", "{:,.0f}"),
        ("till: time of a sync, without the line", "till_s", "{:.4f} s"),
        ("till: bytes written by a sync", "till_bytes", "{:,.0f}"),
    ):
        change = median(getattr(one, field) for one in found)
        whole, idle = getattr(first, field), getattr(nothing, field)
        cells = [shown.format(one) for one in (change, whole)]
        table.add_row(name, *cells, f"{whole / change:,.0f}", shown.format(idle))
    Console().print(table)


if __name__ == "__main__":
    main()
