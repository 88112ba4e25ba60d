"""The audit: who changed what, when. Rows are only ever added, in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import insert

from tallystick_server.database import Transaction
from tallystick_server.tables import audit

OPERATOR = "operator"
SERVER = "server"
"""Who, where a rule decided and no person."""


async def note(
    transaction: Transaction, *, who: str, action: str, about: str, now: datetime, detail: dict[str, Any] | None = None
) -> None:
    """`action` is a short name as `lease.release`, `about` the id of what it was done to, `detail` becomes JSON."""
    await note_each(transaction, who=who, action=action, details={about: detail or {}}, now=now)


async def note_each(
    transaction: Transaction, *, who: str, action: str, details: Mapping[str, dict[str, Any]], now: datetime
) -> None:
    """The same done to many things at once: `details` by the id of each."""
    rows = [
        {"at": now, "who": who, "action": action, "object": about, "detail": msgspec.json.encode(detail).decode()}
        for about, detail in details.items()
    ]
    if rows:
        await transaction.execute(insert(audit), rows)
