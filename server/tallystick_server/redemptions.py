"""Online redemptions: asked, answered and counted in one transaction, with nothing left to reconcile.

The limit is held by the pool itself: a use takes from `free` only what is there, under the pool's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import Row, insert, select

from tallystick_server.database import Again, Transaction
from tallystick_server.devices import Device, must_be_active, signed_by
from tallystick_server.facts import RedemptionFacts, UseFacts
from tallystick_server.ledger import PoolMoves, count_customer_within, count_customers, move_pools, note_demand
from tallystick_server.posting import redemption_row, use_rows
from tallystick_server.reading import content_digest
from tallystick_server.server import Server
from tallystick_server.tables import customer_uses, pools, redemption_uses, redemptions, scope_vouchers, vouchers
from tallystick_server.tables import server as server_table
from tallystick_shared.codes import fold
from tallystick_shared.engine import CompiledVoucher, Result, Usage, compile_voucher, evaluate, result_json
from tallystick_shared.errors import CallerError, InvalidInput, LineError
from tallystick_shared.journal import encode
from tallystick_shared.model import Order, parse_order
from tallystick_shared.signing import Typ, sha256_hex
from tallystick_shared.wire import RedeemAnswer, RedeemRequest

OPERATOR: Final = "operator"
_REQUEST = msgspec.json.Decoder(RedeemRequest)


@dataclass(frozen=True)
class _Asked:
    """A request that came through the door. `issuer`: within which its id is unique."""

    id: str
    issuer: str
    order: Order
    codes: list[str]
    folded: list[str]
    content_sha256: str
    device: Device | None


@dataclass(frozen=True)
class _Found:
    """The vouchers asked for, by folded code, and what has been used of them."""

    rows: dict[str, Row[Any]]
    compiled: dict[str, CompiledVoucher]
    usage: dict[str, Usage]
    limited: frozenset[str]
    """Those that have a pool."""


async def redeem_by_operator(server: Server, body: bytes) -> bytes:
    """`RedeemRequest` as JSON in, `RedeemAnswer` out.

    Raises `InvalidInput`, `CallerError` (`IDENTIFIER_REUSED`), `LineError` (`RECOVERING`).
    """
    try:
        request = _REQUEST.decode(body)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise InvalidInput(where.rstrip("`"), what[:1].lower() + what[1:]) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidInput("", "must be JSON") from error
    if request.device is not None:
        raise InvalidInput("device", "must be null where an operator asks; a device signs its own requests")
    return encode(await _redeem(server, request, None))


async def redeem_by_device(server: Server, body: bytes) -> bytes:
    """As above, signed by an active device (`REDEEM`), and so is the answer by a receipt key (`REDEEMED`), over which
    request it answers. Raises `Untrusted` and `CallerError` (`FORBIDDEN`) too."""
    request, device = await signed_by(server, body, Typ.REDEEM, _REQUEST)
    must_be_active(device)
    answer = await _redeem(server, request, device)
    bound = msgspec.structs.replace(answer, device=device.id, request_sha256=sha256_hex(body))
    return server.keys.receipt.sign(Typ.REDEEMED, encode(bound))


async def _redeem(server: Server, request: RedeemRequest, device: Device | None) -> RedeemAnswer:
    try:
        order = parse_order(bytes(request.order))
    except InvalidInput as error:
        raise error.under("order") from None
    except RecursionError:
        raise InvalidInput("order", "must not be nested so deeply") from None
    folded: list[str] = []
    for index, code in enumerate(request.codes):
        try:
            folded.append(fold(code))
        except InvalidInput as error:
            raise error.under(f"codes[{index}]") from None
    asked = _Asked(
        id=request.id,
        issuer=OPERATOR if device is None else device.id,
        order=order,
        codes=request.codes,
        folded=sorted(set(folded)),
        content_sha256=content_digest(order, request.codes),
        device=device,
    )
    return await server.database.write(lambda transaction: _settle(server, transaction, asked, server.clock()))


async def _settle(server: Server, transaction: Transaction, asked: _Asked, now: datetime) -> RedeemAnswer:
    # 1. a repeat has no second effect
    mine = (redemptions.c.issuer == asked.issuer) & (redemptions.c.redemption_id == asked.id)
    before = (await transaction.execute(select(redemptions).where(mine))).one_or_none()
    if before is not None:
        if before.online and not before.content_sha256:
            raise CallerError("this id was voided before its redemption came; make a new one", code="IDENTIFIER_REUSED")
        if before.content_sha256 != asked.content_sha256:
            raise CallerError("this id was used for another redemption; make a new one", code="IDENTIFIER_REUSED")
        return RedeemAnswer(asked.id, before.at, True, msgspec.Raw(before.result))
    # 2. what is asked for, what has been used of it, and the engine
    found = await _find(server, transaction, asked)
    result = evaluate(asked.order, list(found.compiled.values()), asked.codes, at=now, usage=found.usage)
    raw = result_json(result)
    if not result.applied:
        return RedeemAnswer(asked.id, now, False, msgspec.Raw(raw))
    # 3. a limit that this database may not know all uses of
    if any(fold(one.code) in found.limited for one in result.applied):
        await _must_know_the_limits(transaction)
    # 4. count it
    await _count(transaction, asked, found, result, raw, now)
    return RedeemAnswer(asked.id, now, True, msgspec.Raw(raw))


async def _find(server: Server, transaction: Transaction, asked: _Asked) -> _Found:
    query = select(vouchers).where(vouchers.c.folded.in_(asked.folded))
    if asked.device is not None:
        members = select(scope_vouchers.c.voucher_id).where(scope_vouchers.c.scope == asked.device.scope)
        query = query.where(vouchers.c.id.in_(members))
    rows = {row.folded: row for row in await transaction.execute(query)}
    by_id = {row.id: folded for folded, row in rows.items()}
    revisions = await server.revisions.get(transaction, {(row.id, row.sha256) for row in rows.values()})
    compiled: dict[str, CompiledVoucher] = {}
    for folded, row in rows.items():
        one = revisions[row.id, row.sha256]
        if row.deactivated_at is not None:
            one = compile_voucher(msgspec.structs.replace(one.voucher, status="paused"))
        compiled[folded] = one
    used: dict[str, dict[str, int]] = {folded: {} for folded in rows}
    # the lock on the pools of a voucher lets one request at a time past this point
    locked = select(pools).where(pools.c.voucher_id.in_(list(by_id))).order_by(pools.c.voucher_id, pools.c.measure)
    limited: set[str] = set()
    for pool in (await transaction.execute(locked.with_for_update())).mappings():
        used[by_id[pool["voucher_id"]]][pool["measure"]] = max(pool["limit"] - pool["free"], 0)
        limited.add(by_id[pool["voucher_id"]])
    if asked.order.customer is not None and asked.order.customer.id is not None:
        counted = select(customer_uses).where(
            customer_uses.c.voucher_id.in_(list(by_id)), customer_uses.c.customer_id == asked.order.customer.id
        )
        for row in await transaction.execute(counted):
            used[by_id[row.voucher_id]]["customer"] = row.units
    usage = {
        folded: Usage(one.get("units", 0), one.get("customer", 0), one.get("minor", 0)) for folded, one in used.items()
    }
    return _Found(rows, compiled, usage, frozenset(limited))


async def _must_know_the_limits(transaction: Transaction) -> None:
    """Raises `LineError` (`RECOVERING`) while this may be a restored backup, which has forgotten uses and leases.

    A till then falls back to the lease it has.
    """
    state = (await transaction.execute(select(server_table.c.state))).scalar_one()
    if state != "normal":
        raise LineError(
            "the server is recovering from a backup, and redeems no voucher with a limit online until it knows what "
            "its devices have done",
            code="RECOVERING",
        )


async def _count(
    transaction: Transaction, asked: _Asked, found: _Found, result: Result, raw: bytes, now: datetime
) -> None:
    customer = None if asked.order.customer is None else asked.order.customer.id
    uses: dict[str, UseFacts] = {}
    moves = PoolMoves()
    for one in result.applied:
        row = found.rows[fold(one.code)]
        minor = one.discount_minor
        uses[row.id] = UseFacts(row.id, row.sha256, 1, minor, minor, None, "online")
        moves.add(row.id, "units", free=-1, online=1)
        moves.add(row.id, "minor", free=-minor, online=minor)
    limits = {row.id: found.compiled[folded].voucher.limits.per_customer for folded, row in found.rows.items()}
    await _count_customer(transaction, customer, sorted(uses), limits)
    redemption = RedemptionFacts(
        id=asked.id,
        at=now,
        store_id=asked.order.store_id if asked.device is None else asked.device.store_id,
        customer_id=customer,
        online=True,
        content_sha256=asked.content_sha256,
        body_sha256=None,
        result=raw,
        uses=uses,
    )
    device_id = None if asked.device is None else asked.device.id
    await transaction.execute(insert(redemptions), redemption_row(asked.issuer, device_id, redemption))
    await transaction.execute(insert(redemption_uses), use_rows(asked.issuer, redemption))
    await move_pools(transaction, moves)
    if device_id is not None:
        await note_demand(transaction, device_id, dict.fromkeys(uses, 1), now=now)


async def _count_customer(
    transaction: Transaction, customer: str | None, voucher_ids: Sequence[str], limits: Mapping[str, int | None]
) -> None:
    """Raises `Again` where another request of the same customer was counted since `_find` read."""
    if customer is None:
        return
    for voucher_id in voucher_ids:
        limit = limits[voucher_id]
        if limit is None:
            await count_customers(transaction, {(voucher_id, customer): 1})
        elif not await count_customer_within(transaction, voucher_id, customer, 1, limit):
            raise Again
