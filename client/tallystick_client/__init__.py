"""Vouchers on tills and in app backends that keep working without a network.

with Till.open("/var/lib/till") as till:
    receipt = till.redeem(order, ["SUMMER20"])
"""

from tallystick_client.drivers import AsyncTill, Till
from tallystick_client.errors import (
    CallerError,
    InvalidInput,
    LineError,
    NotNow,
    RemoteError,
    StorageError,
    TallystickError,
    TryLater,
    Untrusted,
)
from tallystick_client.reports import FlaggedEvent, LeaseStatus, Receipt, Status, SyncReport, VoidReceipt
from tallystick_client.syncing import BackgroundSync
from tallystick_client.tls import Tls, configure
from tallystick_shared.journal import Returned

__version__ = "0.1.0"

__all__ = [
    "AsyncTill", "BackgroundSync", "CallerError", "FlaggedEvent", "InvalidInput", "LeaseStatus", "LineError", "NotNow",
    "Receipt", "RemoteError", "Returned", "Status", "StorageError", "SyncReport", "TallystickError", "Till", "Tls",
    "TryLater", "Untrusted", "VoidReceipt", "configure",
]  # fmt: skip
