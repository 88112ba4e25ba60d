"""A till whose line is gone for good, with the real commands: its journal is carried to the server as a file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.audit import audit

if TYPE_CHECKING:
    from tests.contract.conftest import Shop

ORDER = {
    "id": "order-1",
    "currency": "USD",
    "lines": [{"id": "1", "product_id": "tea", "quantity": 3, "unit_price_minor": 450}],
    "customer": {"id": "anna"},
}
ONCE = {"code": "ONCE", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 3}}


def test_a_carried_journal_is_settled_and_the_rest_of_the_lease_is_anothers(shop: Shop) -> None:
    """Sold offline, exported for good, imported beside the running server; the next till gets what was left."""
    assert shop.operator("import", shop.write("v.ndjson", ONCE)).returncode == 0
    shop.enrol("till")
    shop.server.stop()
    order = shop.write("order.json", ORDER)
    assert shop.till("till", "redeem", order, "--code", "ONCE").returncode == 0
    file = str(shop.work / "till.tally")
    assert shop.till("till", "journal", "export", file, "--final").returncode == 0
    assert shop.till("till", "redeem", order, "--code", "ONCE").returncode == 1
    shop.server.start()
    imported = shop.operator("journal", "import", file)
    assert (imported.returncode, "2 events stored (2 applied), 0 known" in imported.stdout) == (0, True)
    again = shop.operator("journal", "import", file)
    assert (again.returncode, "0 events stored (nothing new), 2 known" in again.stdout) == (0, True)
    shop.enrol("next")
    (lease,) = shop.status("next")["leases"]
    assert lease["units"] == 2
    assert shop.till("next", "redeem", order, "--code", "ONCE").returncode == 0
    assert shop.till("next", "sync").returncode == 0
    report = asyncio.run(audit(f"sqlite+aiosqlite:///{shop.data / 'tallystick.sqlite3'}", [shop.work / "next"]))
    assert (report.redeemed, report.doubled, report.over_limit, report.mismatched) == (2, 0, 0, 0)
    assert report.broken == []
