"""The short version of the disk errors, and what must be found in a broken product."""

from __future__ import annotations

import pytest

from tests.proof.disk import CONTROLS, lacks
from tests.proof.rows import ROWS
from tests.proof.runner import folder, short

pytestmark = pytest.mark.skipif(bool(ROWS["disk"].missing), reason=ROWS["disk"].missing or "it is there")


def test_no_error_of_the_disk_loses_or_doubles_anything() -> None:
    """100 calls that fail with EIO or ENOSPC: each is answered in a sentence, and nothing acknowledged is lost."""
    tally = short("disk")
    assert tally.holds, tally.failures
    assert lacks(tally) == []
    assert tally.units >= ROWS["disk"].short


@pytest.mark.parametrize("name", list(CONTROLS))
def test_a_broken_till_is_found(name: str) -> None:
    """What the row proves, it does not prove of a till that is broken on purpose."""
    with folder() as work:
        tally = CONTROLS[name](1, work)
    assert not tally.holds
    assert tally.units
