"""`AsyncTill`: many customers at once, one writer, and an event loop that never waits for the disk."""

from __future__ import annotations

import asyncio
import threading
import time

from tallystick_client import AsyncTill, Returned, Till
from tests.client.conftest import ONCE, TEN, Shop, arrived, order
from tests.client.fake_server import loses_the_request


async def enrolled(shop: Shop) -> AsyncTill:
    return await AsyncTill.enroll(shop.work / "till", shop.server.url, shop.server.token(), clock=shop.clock)


def test_many_customers_at_once(shop: Shop) -> None:
    """Fifty redemptions together: as many as the lease has of one voucher, one chain, all on the server."""
    shop.server.publish(TEN, ONCE)

    async def main() -> None:
        async with await enrolled(shop) as till:
            shop.server.grant(shop.server.device, "ONCE", units=7)
            await till.sync()
            receipts = await asyncio.gather(*(till.redeem(order(number), ["ONCE"]) for number in range(50)))
            assert sum(receipt.redeemed for receipt in receipts) == 7
            results = await asyncio.gather(*(till.preview(order(number), ["TEN"]) for number in range(20)))
            assert {result.discount_minor for result in results} == {135}
            report = await till.sync()
            assert report.acknowledged == 8
            assert sorted(arrived(shop)) == sorted(receipt.id for receipt in receipts if receipt.redeemed)
            assert till._keeper.journal.verify() == 8

    asyncio.run(main())


def test_everything_a_till_does(shop: Shop) -> None:
    """Online, offline, partial return, void, status; the same directory opens as a `Till` afterwards."""
    shop.server.publish(TEN)

    async def main() -> None:
        async with AsyncTill.enroll(shop.work / "till", shop.server.url, shop.server.token(), clock=shop.clock) as till:
            await till.sync()
            online = await till.redeem_online(order(), ["TEN"])
            assert online.online
            shop.server.script = [loses_the_request]
            offline = await till.redeem_online(order(2), ["TEN"])
            assert (offline.redeemed, offline.online) == (True, False)
            assert (await till.void(offline.id, returned=[Returned("1", 1)])).refund_minor == 405
            assert (await till.void(offline.id)).refund_minor == 810
            assert (await till.status()).waiting == 3
        async with AsyncTill.open(shop.work / "till", clock=shop.clock) as till:
            assert (await till.sync(patient=False)).acknowledged == 3

    asyncio.run(main())
    with Till.open(shop.work / "till", clock=shop.clock) as till:
        assert till.status().acknowledged == 3


def test_a_void_asked_for_again_under_its_id_is_one(shop: Shop) -> None:
    """Many tasks and two openings of the till at once, all with one id: the same receipt, one event."""
    shop.server.publish(TEN)
    own = "0190b6a0-0000-7000-8000-000000000001"

    async def main() -> None:
        async with await enrolled(shop) as till, AsyncTill.open(shop.work / "till", clock=shop.clock) as other:
            await till.sync()
            sold = (await till.redeem(order(), ["TEN"])).id
            part = [Returned("1", 1)]
            asked = (one.void(sold, returned=part, id=own) for one in [till, other] * 5)
            (receipt,) = set(await asyncio.gather(*asked))
            assert (receipt.id, receipt.refund_minor) == (own, 405)
            assert (await till.status()).head == 2

    asyncio.run(main())


def test_the_event_loop_does_not_wait_for_the_disk(shop: Shop) -> None:
    """While another process holds the journal, other tasks go on."""
    shop.server.publish(TEN)

    async def main() -> float:
        async with await enrolled(shop) as till:
            await till.sync()
            other = Till.open(shop.work / "till", clock=shop.clock)
            held, done = threading.Event(), threading.Event()

            def hold() -> None:
                with other._keeper.journal.write():
                    held.set()
                    done.wait(10)

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait(10)
            redeeming = asyncio.create_task(till.redeem(order(), ["TEN"]))
            longest = 0.0
            for _ in range(20):
                started = time.perf_counter()
                await asyncio.sleep(0.01)
                longest = max(longest, time.perf_counter() - started)
            assert not redeeming.done()
            done.set()
            assert (await redeeming).redeemed
            thread.join()
            other.close()
            return longest

    assert asyncio.run(main()) < 1.0


def test_two_syncs_at_once_take_turns(shop: Shop) -> None:
    """One sync of a till at a time, of all its tasks and processes; both succeed, and nothing is sent twice."""
    shop.server.publish(TEN)

    async def main() -> None:
        async with await enrolled(shop) as till, AsyncTill.open(shop.work / "till", clock=shop.clock) as other:
            await till.sync()
            ids = [(await till.redeem(order(number), ["TEN"])).id for number in range(5)]
            reports = await asyncio.gather(till.sync(), other.sync(), till.sync())
            assert sorted(report.sent for report in reports) == [0, 0, 5]
            assert arrived(shop) == ids

    asyncio.run(main())


def test_a_cancelled_sync_lets_the_next_one_go(shop: Shop) -> None:
    """A task that is given up while it waits for its turn, or in the middle, holds nothing."""
    shop.server.publish(TEN)

    async def main() -> None:
        async with await enrolled(shop) as till:
            for pause_s in (0.0, 0.005, 0.05):
                task = asyncio.create_task(till.sync())
                await asyncio.sleep(pause_s)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            assert (await asyncio.wait_for(till.sync(), 10)).state == "active"

    asyncio.run(main())
