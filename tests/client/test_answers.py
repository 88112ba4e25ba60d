"""What a till is sent, over real HTTP: bundles and roots that it takes, and what it does not believe."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import msgspec
import pytest

from tallystick_client import Till, Untrusted
from tallystick_client.errors import TallystickError
from tallystick_shared.journal import Position
from tallystick_shared.signing import SigningKey
from tallystick_shared.wire import SyncAnswer
from tests.client.conftest import ONCE, TEN, Shop, arrived, order, replaced, sell
from tests.client.fake_server import Reply, passes


@pytest.fixture
def till(shop: Shop) -> Till:
    shop.server.publish(TEN, ONCE)
    return shop.enroll()


# ---- what is not believed


def untrusted(change: Callable[[SyncAnswer], SyncAnswer], shop: Shop, till: Till, code: str) -> None:
    shop.server.tamper = change
    before = till.status()
    with pytest.raises(Untrusted) as caught:
        till.sync()
    assert caught.value.code == code
    shop.server.tamper = lambda answer: answer
    after = till.status()
    assert after.next_sync_at is not None, "or a loop over it would not pause"
    assert msgspec.structs.replace(after, at=before.at, next_sync_at=None, notes=before.notes) == before
    till.sync()


def test_an_answer_that_does_not_fit_changes_nothing(till: Till, shop: Shop) -> None:
    """Another request, another chain, too much: ignored as a whole, and the next answer is taken."""
    sell(till, 3)
    head = till.status().head
    untrusted(replaced(request_sha256="0" * 64), shop, till, "NOT_OUR_REQUEST")
    sell(till, 1)
    untrusted(replaced(acknowledged=Position(head + 1, "0" * 64)), shop, till, "NOT_OUR_JOURNAL")
    untrusted(replaced(acknowledged=Position(99, "0" * 64)), shop, till, "NOT_OUR_JOURNAL")
    untrusted(replaced(server_epoch=0), shop, till, "OLD_EPOCH")
    untrusted(replaced(ledger_mark=0), shop, till, "OLD_LEDGER_MARK")
    start = till._keeper.journal.state().base_hash
    untrusted(replaced(acknowledged=Position(0, start), durable=Position(0, start)), shop, till, "NOT_OUR_JOURNAL")
    assert till.status().acknowledged == head + 1


def test_a_portal_that_answers_for_the_server_is_not_believed(till: Till, shop: Shop) -> None:
    """200 with somebody's login page is no answer of the server."""
    shop.server.script = [lambda _path, _answer: (200, {}, b"<html>Welcome to the airport</html>")]
    with pytest.raises(Untrusted):
        till.sync()
    assert till.status().next_sync_at is not None, "or a loop over it would not pause"
    assert till.redeem(order(), ["TEN"]).redeemed


@pytest.mark.parametrize("status", [200, 400, 404, 409, 503])
@pytest.mark.parametrize("body", [b'{"x":' + b"[" * 9_000 + b"]" * 9_000 + b"}", b'{"code":"\xff"}'])
def test_no_answer_is_an_error_that_nobody_expects(till: Till, shop: Shop, status: int, body: bytes) -> None:
    """Nested deeply or no UTF-8, and nobody has to sign it: refused in words (prove-bundles, seed 1, case 0)."""
    shop.server.script = [lambda _path, _answer: (status, {"content-type": "application/problem+json"}, body)]
    with pytest.raises(TallystickError):
        till.sync()
    assert till.redeem(order(), ["TEN"]).redeemed


def test_an_answer_may_ask_for_a_day_of_rest_at_most(till: Till, shop: Shop) -> None:
    """10^15 seconds were an OverflowError, which no later answer could mend (prove-bundles, whole tills)."""
    shop.server.tamper = replaced(retry_after_s=10**15)
    till.sync()
    assert till.status().next_sync_at == till.status().at + timedelta(days=1)


def test_a_rejected_bundle_leaves_the_one_before(till: Till, shop: Shop) -> None:
    """Signed by a stranger, or not what its digest says: the till goes on selling from what it has."""
    bundle_key = shop.server.bundle_key
    shop.server.publish({**TEN, "code": "NEW"})
    shop.server.bundle_key = SigningKey.generate()
    with pytest.raises(Untrusted) as caught:
        till.sync()
    assert caught.value.code == "UNKNOWN_KEY"
    shop.server.bundle_key = bundle_key

    def spoilt(_path: str, answer: Callable[[], Reply]) -> Reply:
        return 200, {}, answer()[2][:-1] + b"\x00"

    shop.server.script = [passes, passes, spoilt, spoilt]
    with pytest.raises(Untrusted):
        till.sync()
    assert till.status().bundle_version == 1
    assert till.redeem(order(), ["TEN"]).redeemed
    assert till.sync().bundle_version == 2


def test_a_bundle_may_not_go_back(till: Till, shop: Shop) -> None:
    """An older version under a good signature is refused, also by a till whose cache is gone."""
    shop.server.publish({**TEN, "code": "NEW"})
    till.sync()
    till.close()
    for part in (shop.work / "till" / "cache").iterdir():
        part.unlink()
    shop.server.version = 1
    with pytest.raises(Untrusted) as caught:
        shop.open().sync()
    assert caught.value.code == "ROLLBACK"


# ---- bundles and roots


def test_only_what_changed_is_fetched(till: Till, shop: Shop) -> None:
    """Nothing new: one request. Past half of its life: the manifest alone, and it is good for longer."""
    shop.server.requests.clear()
    till.sync()
    assert shop.server.requests == ["POST /v1/sync"]
    shop.clock.run(days=1, hours=1)
    shop.server.requests.clear()
    before = till.status().bundle_expires_at
    till.sync()
    assert shop.server.requests == ["POST /v1/sync", "GET /v1/scopes/main/manifest"]
    after = till.status().bundle_expires_at
    assert before is not None
    assert after == before + timedelta(days=1, hours=1)


def test_new_keys_are_learnt_root_by_root(till: Till, shop: Shop) -> None:
    """Two roots on, with new receipt and bundle keys: fetched one by one, and the answer is believed then."""
    server = shop.server
    old_root = server.root_key
    server.receipt_key = SigningKey.generate()
    server.roots.append(server.make_root(2))
    server.bundle_key, server.root_key = SigningKey.generate(), SigningKey.generate()
    server.roots.append(server.make_root(3, signers=[old_root, server.root_key]))
    sell(till, 1)
    server.requests.clear()
    assert till.sync().acknowledged == 1
    roots = [one for one in server.requests if "roots" in one]
    assert (server.requests[0], roots) == ("POST /v1/sync", ["GET /v1/roots/2", "GET /v1/roots/3"])
    assert till.redeem(order(), ["TEN"]).redeemed
    till.close()
    assert shop.open().sync().bundle_version == 1


@pytest.mark.parametrize("name", ["ledger_mark", "server_epoch"])
def test_new_receipt_keys_undo_what_a_stolen_one_signed(till: Till, shop: Shop, name: str) -> None:
    """Whoever had the key signed a mark or an epoch that the server never reaches: its rotation ends that."""
    server = shop.server
    server.tamper = replaced(**{name: 2**40})
    till.sync()
    server.tamper = lambda answer: answer
    with pytest.raises(Untrusted):
        till.sync()
    server.receipt_key = SigningKey.generate()
    server.roots.append(server.make_root(2))
    ids = sell(till, 2)
    till.sync()
    assert arrived(shop) == ids
    till.sync()
    assert (server.heads[-1].server_epoch, server.heads[-1].ledger_mark) == (1, server.mark - 1)


def test_a_bundle_that_the_cache_has_and_the_journal_has_not_is_kept_again(
    till: Till, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power went between the two: the next sync writes its version and its floor."""
    shop.server.publish({**TEN, "code": "NEW"})

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tallystick_client.exchange.keep_floor", power_cut)
        with pytest.raises(KeyboardInterrupt):
            till.sync()
    till.close()
    till = shop.open()
    till.sync()
    assert till.sync().bundle_version == shop.server.version
    assert shop.server.heads[-1].manifest_version == shop.server.version


def test_a_root_that_is_over_is_renewed(till: Till, shop: Shop) -> None:
    """The operator renewed it in time: the till follows. Did not: nothing is believed, and the sentence says why."""
    shop.clock.run(days=366)
    sell_before = till.status().head
    with pytest.raises(Untrusted, match="root expired") as caught:
        till.sync()
    assert caught.value.code == "ROOT_EXPIRED"
    shop.server.roots.append(shop.server.make_root(2))
    till.sync()
    assert till.status().head >= sell_before
    assert till.redeem(order(), ["TEN"]).redeemed


def test_a_change_of_scope_closes_leases_and_brings_another_bundle(till: Till, shop: Shop) -> None:
    """Signed in an answer: the leases go back, the new scope's vouchers come."""
    shop.server.grant(shop.server.device, "ONCE")
    till.sync()
    shop.server.scope = "outlet"
    shop.server.publish({**TEN, "code": "OUTLET"})
    report = till.sync()
    assert (report.leases_closed, till.status().scope) == (1, "outlet")
    assert shop.server.device.leases == {}
    assert till.redeem(order(), ["OUTLET"]).redeemed
