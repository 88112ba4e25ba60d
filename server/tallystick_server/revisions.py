"""Published revisions, compiled once: they never change, so their digest is all that a cache needs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from sqlalchemy import select

from tallystick_server.database import Transaction, chunks
from tallystick_server.hiding import with_code
from tallystick_server.tables import voucher_revisions, vouchers
from tallystick_shared.engine import CompiledVoucher, compile_voucher
from tallystick_shared.model import load_voucher

CACHED_MAX = 20_000


class Revisions:
    """Compiled vouchers by (voucher id, digest of the revision); the least recently used ones are dropped."""

    def __init__(self) -> None:
        self._compiled: OrderedDict[tuple[str, str], CompiledVoucher] = OrderedDict()

    async def get(
        self, transaction: Transaction, wanted: Collection[tuple[str, str]]
    ) -> dict[tuple[str, str], CompiledVoucher]:
        """Those of `wanted` that were ever published; one query for all that are not in memory."""
        missing = {key for key in wanted if key not in self._compiled}
        found: dict[tuple[str, str], CompiledVoucher] = {}
        for part in chunks(sorted({voucher_id for voucher_id, _ in missing})):
            query = (
                select(voucher_revisions, vouchers.c.code, vouchers.c.hidden)
                .join(vouchers, vouchers.c.id == voucher_revisions.c.voucher_id)
                .where(voucher_revisions.c.voucher_id.in_(part))
            )
            for row in await transaction.execute(query):
                key = (row.voucher_id, row.sha256)
                if key in missing:
                    voucher = load_voucher(row.json)
                    # whoever redeems a hidden code says it in clear
                    found[key] = compile_voucher(with_code(voucher, row.code) if row.hidden else voucher)
        for key in wanted:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                found[key] = self._compiled[key]
        self._compiled.update(found)
        while len(self._compiled) > CACHED_MAX:
            self._compiled.popitem(last=False)
        return found
