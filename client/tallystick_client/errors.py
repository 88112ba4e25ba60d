"""The errors of the client, by whose fault they are; those of `tallystick_shared.errors` are its upper part.

TallystickError
├── CallerError            the caller's fault: mend the input or the call, a repeat will not help
│   ├── NotNow               this till may not do this in the state it is in; the sentence says what to do
│   └── StorageError         this machine's disk is full, damaged, or not this process's to use
├── RemoteError            the other side's fault: what it sent is not believed, nothing was changed
└── LineError              the line's fault: try again later
    └── TryLater             the same, with the time of the next attempt
"""

from __future__ import annotations

from datetime import datetime

from tallystick_shared.errors import CallerError, InvalidInput, LineError, RemoteError, TallystickError, Untrusted

__all__ = [
    "CallerError", "InvalidInput", "LineError", "NotNow", "RemoteError", "StorageError", "TallystickError", "TryLater",
    "Untrusted",
]  # fmt: skip


class NotNow(CallerError):
    """Codes: `TOO_LONG_OFFLINE`, `QUEUE_FULL`, `SUSPENDED`, `NO_BUNDLE`, `SYNC_RUNNING`, `NEEDS_CONNECTION`,
    `RETIRED`.
    """

    default_code = "NOT_NOW"


class StorageError(CallerError):
    """Codes: `DISK_FULL`, `DISK`, `BUSY`, `NOT_OURS`, `NOT_A_TILL`, `MIXED_DIRECTORY`, `JOURNAL_DAMAGED`,
    and `UNCERTAIN` where a commit failed in such a way that a crash after it may bring it back.
    """

    default_code = "DISK"


class TryLater(LineError):
    """`next_attempt_at` is kept in the journal, so that a restart does not forget it."""

    def __init__(self, message: str, *, next_attempt_at: datetime, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.next_attempt_at = next_attempt_at
