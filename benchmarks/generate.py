"""A seeded data set of the shape of the real one, for machines that do not have it."""

from __future__ import annotations

import gzip
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

START = datetime(2017, 1, 1, 9, tzinfo=UTC)


def generate(
    directory: Path, *, seed: int, vouchers: int = 300, events: int = 500, stores: int = 60
) -> tuple[Path, Path]:
    """Writes `vouchers.ndjson.gz` and `redemptions.ndjson.gz` into `directory` and returns their paths."""
    chance = random.Random(seed)
    catalogue = [_voucher(chance, number) for number in range(vouchers)]
    lines = [_event(chance, number, catalogue, stores) for number in range(events)]
    paths = directory / "vouchers.ndjson.gz", directory / "redemptions.ndjson.gz"
    for path, rows in zip(paths, (catalogue, lines), strict=True):
        with gzip.open(path, "wt") as out:
            out.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    return paths


def _voucher(chance: random.Random, number: int) -> dict[str, Any]:
    campaign = f"campaign-{number % 27 + 1}"
    starts = START + timedelta(days=chance.randrange(120))
    return {
        "code": f"{50_000_000_000 + number}-{number % 27 + 1}",
        "campaign_id": campaign,
        "discount": {
            "type": "fixed",
            "amount_minor": chance.choice([50, 75, 100, 100, 150]),
            "items": {
                "product_ids": sorted({str(chance.randrange(1, 20_000)) for _ in range(chance.randrange(1, 60))})
            },
        },
        "when": {"field": "customer.segments", "op": "contains", "value": campaign},
        "valid_from": starts.isoformat(),
        "valid_until": (starts + timedelta(days=60)).isoformat(),
        "limits": {"total": chance.choice([1, 1, 1, 1, 2, 3, 4, 8, 20]), "per_customer": 1},
        "offline": {"policy": "quota"},
    }


def _event(chance: random.Random, number: int, catalogue: list[dict[str, Any]], stores: int) -> dict[str, Any]:
    voucher = catalogue[min(int(chance.paretovariate(0.6)) - 1, len(catalogue) - 1)]
    at = datetime.fromisoformat(voucher["valid_from"]) + timedelta(minutes=chance.randrange(60 * 24 * 60))
    store = str(min(int(chance.paretovariate(0.8)), stores))
    lines = [
        {
            "id": str(index + 1),
            "product_id": product,
            "quantity": chance.randrange(1, 4),
            "unit_price_minor": chance.randrange(49, 1500),
        }
        for index, product in enumerate(
            [chance.choice(voucher["discount"]["items"]["product_ids"]), "990001", "990002"]
        )
    ]
    order = {
        "id": f"generated-{number:05}",
        "currency": "USD",
        "store_id": store,
        "channel": "pos",
        "lines": lines,
        "customer": {"id": str(chance.randrange(1, 400)), "segments": [voucher["campaign_id"]]},
    }
    return {"at": at.isoformat(), "store_id": store, "code": voucher["code"], "order": order}
