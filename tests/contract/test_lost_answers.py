"""A till whose online redemption got no answer: it voids it or asks again, and nothing is taken that nobody has."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import httpx2
import pytest

from tallystick_client import Till
from tallystick_client.actions import Persist, Send, Woken
from tallystick_server import operations, privacy
from tests.contract.chain import Chain

ORDER = {
    "id": "o", "currency": "EUR", "customer": {"id": "anna"},
    "lines": [{"id": "1", "product_id": "tea", "quantity": 2, "unit_price_minor": 500}],
}  # fmt: skip
THREE = {
    "code": "THREE", "discount": {"type": "fixed", "amount_minor": 300}, "limits": {"total": 3, "per_customer": 1},
    "offline": {"policy": "online_only"},
}  # fmt: skip


@pytest.fixture
def till(chain: Chain) -> Till:
    path = chain.work / "three.ndjson"
    path.write_text(json.dumps(THREE) + "\n")
    asyncio.run(operations.import_vouchers(chain.settings, path, now=chain.clock()))
    return chain.enrol("a")


def asked(till: Till, codes: Sequence[str] = ("THREE",)) -> tuple[str, Send]:
    """An attempt that is on record at the till, with the request that was to be sent."""
    keeper = till._keeper
    machine = keeper.online_machine(ORDER, list(codes))
    begin = machine.step(Woken(), keeper.tick())
    assert isinstance(begin, Persist)
    send = machine.step(keeper.perform(begin.change), keeper.tick())
    assert isinstance(send, Send)
    ((redemption_id,),) = journal(till, "SELECT id FROM attempts")
    return redemption_id, send


def journal(till: Till, query: str) -> list[Any]:
    with till._keeper.journal.read() as view:
        return view.run(query).fetchall()


def database(chain: Chain, query: str) -> list[Any]:
    with closing(sqlite3.connect(chain.settings.sqlite_file or "")) as connection:
        return connection.execute(query).fetchall()


def posted(chain: Chain, send: Send) -> httpx2.Response:
    return httpx2.post(chain.url + send.path, content=send.body, headers=send.headers)


def never(chain: Chain, send: Send) -> None:
    """The request was lost."""


def comes(chain: Chain, send: Send) -> None:
    assert posted(chain, send).status_code == 200


def is_refused(chain: Chain, send: Send) -> None:
    answer = posted(chain, send)
    assert (answer.status_code, answer.json()["code"]) == (409, "IDENTIFIER_REUSED")
    assert answer.json()["detail"] == "this id was voided before its redemption came; make a new one"


@pytest.mark.parametrize(
    ("before", "after"), [(comes, never), (never, never), (never, is_refused)], ids=["came", "lost", "came late"]
)
def test_a_void_of_an_attempt_leaves_nothing_taken(
    chain: Chain, till: Till, before: Callable[[Chain, Send], None], after: Callable[[Chain, Send], None]
) -> None:
    """The limit and the customer have all their uses, the operator has nothing to look at, and the audit agrees."""
    redemption_id, send = asked(till)
    before(chain, send)
    assert till.void(redemption_id).refund_minor == 0
    till.sync()
    after(chain, send)
    till.sync()
    assert database(chain, "SELECT reason FROM flags") == []
    assert database(chain, "SELECT sum(units) FROM customer_uses") in ([(0,)], [(None,)])
    assert database(chain, 'SELECT "limit" - free FROM pools p JOIN vouchers v ON v.id = p.voucher_id'
                    " WHERE v.code = 'THREE' AND measure = 'units'") == [(0,)]  # fmt: skip
    report = chain.audited()
    assert (report.lost, report.doubled, report.over_limit, report.mismatched, report.broken) == (0, 0, 0, 0, [])
    assert report.redeemed == (1 if before is comes else 0)


def test_the_audit_knows_what_a_void_without_uses_gave_back(chain: Chain, till: Till) -> None:
    """Three of three are redeemed after one was voided: that is no use beyond the limit."""
    redemption_id, send = asked(till)
    comes(chain, send)
    till.void(redemption_id)
    till.sync()
    for number in range(3):
        order = ORDER | {"id": f"o-{number}", "customer": {"id": f"c-{number}"}}
        assert till.redeem_online(order, ["THREE"]).redeemed
    till.sync()
    report = chain.audited()
    assert (report.redeemed, report.voided, report.over_limit, report.broken) == (4, 1, 0, [])


def test_an_answer_is_told_again_after_its_customer_was_forgotten(chain: Chain, till: Till) -> None:
    """What the server erased of a stored result leaves one that a till can read (state machine, seed 3, case 58)."""
    redemption_id, send = asked(till, ["THREE", "NOPE"])
    comes(chain, send)
    asyncio.run(privacy.forget(chain.settings, "anna", now=chain.clock()))
    receipt = till.redeem_online(ORDER, ["THREE", "NOPE"])
    assert (receipt.id, receipt.redeemed, receipt.online) == (redemption_id, True, True)
    assert [one.code for one in receipt.result.refused] == ["NOPE"]
