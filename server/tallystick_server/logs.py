"""The log: one JSON object a line, through the standard library's `tallystick_server` logger, silent until configured.

Never a body, a header, a key, a token, or an address with an id in it.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_LOGGER = logging.getLogger("tallystick_server")
LOG: Any = structlog.wrap_logger(
    _LOGGER,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.JSONRenderer(),
    ],
)


def log_to_stderr() -> None:
    """What `tallystick-server serve` does with it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False
