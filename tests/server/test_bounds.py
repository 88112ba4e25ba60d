"""What a batch reads, and what a fork writes, does not grow with what others did or with what waits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event

from tallystick_server import posting
from tallystick_shared.journal import EVENT_BYTES_MAX, EventType, Use
from tallystick_shared.signing import sha256_hex
from tallystick_shared.wire import Flag, Outcome
from tests.server.conftest import ORDER, voucher
from tests.server.test_recovery import audited
from tests.server.test_sync import clone
from tests.server.tiny_device import NONE, TinyDevice

if TYPE_CHECKING:
    from tests.server.conftest import Shop

MANY = (
    "INSERT INTO customer_uses (voucher_id, customer_id, units)"
    " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
    " SELECT :voucher, 'customer-' || i, 1 FROM n"
)
QUARANTINE = (
    "UPDATE events SET outcome = 'quarantined', event_id = NULL",
    "INSERT INTO flags (device_id, branch, seq, reason, state, raised_at, note)"
    " SELECT device_id, branch, seq, 'UNREADABLE', 'open', received_at, '' FROM events",
)


@dataclass
class Fetched:
    """Rows that the database handed over, and the bytes of their binary columns."""

    rows: int = 0
    bytes: int = 0


@contextmanager
def fetching() -> Iterator[Fetched]:
    """Counts in every engine of this process."""
    found = Fetched()

    def count(_connection: Any, cursor: Any, *_: Any) -> None:
        # the drivers' adapters hold all rows of a result from the moment it is there
        rows = list(cursor._rows)
        found.rows += len(rows)
        found.bytes += sum(len(value) for row in rows for value in row if isinstance(value, bytes))

    event.listen(Engine, "after_cursor_execute", count)
    try:
        yield found
    finally:
        event.remove(Engine, "after_cursor_execute", count)


def fetched_by(work: Callable[[], object]) -> Fetched:
    with fetching() as found:
        work()
    assert found.rows > 0
    return found


def sell_to(device: TinyDevice, customer: str) -> list[Flag]:
    """Sells a cup of `one` and sends it; why it waits for a person."""
    device.redeem(ORDER | {"customer": {"id": customer}}, "one")
    return [Flag(reason) for one in device.sync().exceptions for reason in one.reasons]


def test_a_batch_reads_the_counts_of_its_own_customers_only(either_shop: Shop) -> None:
    """As many rows for 2,000 customers of the voucher as for one, and the limit holds for each."""
    shop = either_shop
    shop.publish(voucher("ONE", per_customer=1))
    device = shop.device()
    for customer in ("anna", "bert", "carl"):
        assert sell_to(device, customer) == []
    few = fetched_by(lambda: sell_to(device, "dora"))
    shop.rows(MANY, voucher=device.vouchers["one"].id)
    assert fetched_by(lambda: sell_to(device, "emil")) == few
    assert sell_to(device, "customer-7") == [Flag.CUSTOMER_LIMIT]


@pytest.mark.parametrize("customer", [b'"a\\u0000b"', b'"' + b"a" * 257 + b'"', b"7", b"[[[["])
def test_a_body_that_names_no_customer_it_could_is_flagged_and_counted(either_shop: Shop, customer: bytes) -> None:
    """Looking for its customer keeps no event from being settled."""
    either_shop.publish(voucher("ONE", per_customer=1))
    device = either_shop.device()
    uses = [Use(device.vouchers["one"].id, sha256_hex(bytes(device.vouchers["one"].voucher)), None, 1, 100)]
    order = json.dumps(ORDER).encode().replace(b'"anna"', customer)
    body = b'{"order":' + order + b',"codes":["one"],"result":{"applied":[]},"salt":"s"}'
    device.append(EventType.REDEEM, uses, body)
    (found,) = device.sync().exceptions
    assert found.outcome == Outcome.FLAGGED
    assert {Flag.UNREADABLE, Flag.CUSTOMER_LIMIT} <= set(found.reasons)


def test_what_is_quarantined_is_not_read_again(either_shop: Shop) -> None:
    """40 unreadable events cost the next sale no row, and the next close one, without its body."""
    shop = either_shop
    shop.publish(voucher("ONE", per_customer=9), voucher("tea", total=5))
    device = shop.device()
    for _ in range(3):
        assert sell_to(device, "anna") == []
    few = fetched_by(lambda: sell_to(device, "anna"))
    for _ in range(40):
        device.append_raw(b"no envelope", b"x" * 20_000)
    device.sync()
    many = fetched_by(lambda: sell_to(device, "anna"))
    assert (many.rows, many.bytes < 20_000) == (few.rows, True)
    (lease,) = device.active()
    device.close(lease)
    closing = fetched_by(lambda: device.sync().exceptions)
    assert closing.rows < few.rows + 20
    assert closing.bytes < 20_000
    assert device.answer.exceptions[0].reasons == [Flag.UNREADABLE]
    assert shop.pool("tea")["held"] == 5


def test_an_event_that_was_too_large_blocks_a_later_close(either_shop: Shop) -> None:
    """Its envelope could be read, but it was not settled: what it used is not known."""
    either_shop.publish(voucher("tea", total=5))
    device = either_shop.device()
    (lease,) = device.active()
    device.append(EventType.REDEEM, [Use(NONE, None, None, 1, 1)], b'"' + b"x" * EVENT_BYTES_MAX + b'"')
    assert [one.outcome for one in device.sync().exceptions] == [Outcome.QUARANTINED]
    device.close(lease)
    assert [one.reasons for one in device.sync().exceptions] == [[Flag.UNREADABLE]]


@pytest.mark.parametrize(("waiting", "expected"), [(3, []), (4, [[Flag.UNREADABLE]])])
def test_a_close_waits_where_too_many_events_are_quarantined(
    either_shop: Shop, monkeypatch: pytest.MonkeyPatch, waiting: int, expected: list[list[Flag]]
) -> None:
    """Those that can be read block the leases they name, page by page; beyond a bound all leases are held."""
    monkeypatch.setattr(posting, "BLOCKED_PAGE", 2)
    monkeypatch.setattr(posting, "BLOCKED_MAX", 4)
    either_shop.publish(voucher("jam"), voucher("tea", total=5))
    device = either_shop.device()
    for _ in range(waiting):
        device.redeem(ORDER, "jam")
    device.sync()
    for change in QUARANTINE:
        either_shop.rows(change)
    (lease,) = device.active()
    device.close(lease)
    assert [one.reasons for one in device.sync().exceptions] == expected


def test_a_lease_that_a_quarantined_event_names_stays_open(shop: Shop) -> None:
    """On whichever page it is, and whatever its body."""
    shop.publish(voucher("tea", total=5))
    device = shop.device()
    device.redeem(ORDER, "tea")
    device.sync()
    for change in QUARANTINE:
        shop.rows(change)
    (lease,) = device.active()
    device.close(lease)
    assert [one.reasons for one in device.sync().exceptions] == [[Flag.UNREADABLE]]


def test_only_the_first_fork_writes_the_exposure_into_the_audit(either_shop: Shop) -> None:
    """A hostile till opens a branch with every sync: each later one is a line, and the device's page has it all."""
    shop = either_shop
    shop.publish(voucher("tea", total=5), voucher("jam"))
    device = shop.device()
    copies = [clone(device) for _ in range(3)]
    for index, one in enumerate([device, *copies]):
        one.redeem(ORDER | {"id": f"order-{index}"}, "jam")
        one.sync()
    details = [row["detail"] for row in audited(shop, "device.fork")]
    assert [one["branch"] for one in details] == [1, 2, 3]
    assert [len(one.get("leases", ())) for one in details] == [1, 0, 0]
    assert len(shop.get(f"/v1/devices/{device.id}")["leases"]) == 1
