"""The short version of the API row, what it finds where the product is broken on purpose, and its own parts."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from tallystick_server.documents import JOSE, SYNC
from tallystick_shared.signing import verify
from tallystick_shared.wire import Problem
from tests.proof.api import CONTROLS, MANY_EDGES, NEVER_REFUSED, RULES_BETWEEN_FIELDS, lacks, operations
from tests.proof.api_shop import filled
from tests.proof.api_signing import TYPES, Signer
from tests.proof.api_witness import Answer, wrong_with
from tests.proof.runner import folder, short


def test_the_short_version_holds() -> None:
    """Whatever is asked, by whom, every answer is as the document says, and a refusal changes nothing."""
    tally = short("api")
    assert [failure.what for failure in tally.failures] == []
    assert tally.holds
    # a short version may miss one that needs luck; the full count may not
    assert len(lacks(tally)) <= 2, lacks(tally)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_product_that_is_broken_on_purpose_is_found(control: str) -> None:
    """The same run on a server without one of its checks does not hold."""
    with folder() as work:
        tally = CONTROLS[control](1, work)
    assert not tally.holds, control
    assert tally.failures


def test_exceptions_name_operations_that_are_there() -> None:
    """What is said of an operation that is gone would excuse nothing, and go unnoticed."""
    assert {*RULES_BETWEEN_FIELDS, *NEVER_REFUSED, *MANY_EDGES} <= {*operations()}


def answer(problem: Problem, **changed: object) -> Answer:
    values: dict[str, Any] = {
        "status": problem.status,
        "headers": {"x-request-id": problem.request_id, "content-type": "application/problem+json"},
        "body": msgspec.json.encode(problem),
    }
    return Answer("GET", "/", **(values | changed))


GOOD = Problem("urn:tallystick:problem:not-found", "Not Found", 404, "there is no such voucher", "NOT_FOUND", "id-1")


@pytest.mark.parametrize(
    "bad",
    [
        answer(GOOD, headers={"content-type": "application/problem+json"}),
        answer(GOOD, headers={"x-request-id": "id-1", "content-type": "text/html"}),
        answer(GOOD, headers={"x-request-id": "id-2", "content-type": "application/problem+json"}),
        answer(GOOD, status=400),
        answer(msgspec.structs.replace(GOOD, status=500)),
        answer(msgspec.structs.replace(GOOD, status=503, code="DATABASE_BUSY")),
        answer(GOOD, body=b"Not Found"),
        answer(GOOD, left=["vouchers"]),
        answer(msgspec.structs.replace(GOOD, code="not found")),
        answer(msgspec.structs.replace(GOOD, type="about:blank")),
        answer(msgspec.structs.replace(GOOD, detail="Traceback (most recent call last)")),
        answer(msgspec.structs.replace(GOOD, detail="no such table: SELECT id FROM vouchers")),
        answer(msgspec.structs.replace(GOOD, detail="one\ntwo")),
        answer(msgspec.structs.replace(GOOD, detail="")),
    ],
)
def test_the_witness_sees_a_refusal_that_is_not_as_it_must_be(bad: Answer) -> None:
    """Each rule of problem details is looked at, and a good refusal is none the worse for it."""
    assert wrong_with(answer(GOOD)) == ""
    assert wrong_with(bad) != ""


def test_what_is_signed_for_a_device_is_good_unless_it_is_spoiled() -> None:
    """A body that is not noted as spoiled has the device's signature: the run gets behind it."""
    spoiled: set[bytes] = set()
    signer = Signer(filled(), random.Random(1), spoiled, signs_all=False)
    good = 0
    for path, typ in TYPES.items():
        for _ in range(25):
            body: dict[str, object] = {}
            signer._fit(path, body)
            whole = signer.sign(path, SYNC if path == "/v1/sync" else JOSE, body)
            if whole not in spoiled:
                verify(whole.partition(b"\n")[0], {signer.key.kid: signer.key}, typ)
                good += 1
    assert 60 < good < 95
    assert 0 < len(spoiled) <= 100 - good
