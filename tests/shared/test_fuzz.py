"""The door against anything: bytes, JSON of any shape, and good documents with one thing made strange.

Source: engine.md: what is not understood is refused with the path of the field and what it should have been.
"""

from __future__ import annotations

import copy
import json
import os
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick_shared.engine import Result, compile_voucher, evaluate, result_json
from tallystick_shared.errors import InvalidInput, one_line
from tallystick_shared.model import parse_order, parse_request, parse_voucher, voucher_json
from tests.shared import cases
from tests.shared.build import NOON, Doc, order

EXAMPLES = int(os.environ.get("TALLYSTICK_EXAMPLES", "400"))
MANY = settings(max_examples=EXAMPLES, deadline=None)
ORDER = order(1000, 250, shipping_minor=490)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "percentage", "USD", "gift_card", "2026-06-01T00:00:00Z", "0.00001", "1e400", "\ud800", "\0"]),
    st.sampled_from([-1, 0, 1, 2**31, 2**53, 2**63, 2**64, 10**12, 10**15 + 1, 10**30, 0.1, -0.0, 1e308]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
)


def check_voucher_or_error(raw: Any) -> None:
    """A voucher that can be written, read, compiled and applied, or one sentence; nothing else."""
    try:
        voucher = parse_voucher(raw, default_currency="EUR")
    except InvalidInput as error:
        check_sentence(error)
        return
    written = voucher_json(voucher)
    assert voucher_json(parse_voucher(written)) == written
    result = evaluate(ORDER, [compile_voucher(voucher)], at=NOON, usage={})
    assert isinstance(result, Result)
    assert len(result.applied) + len(result.refused) == 1
    assert json.loads(result_json(result))


def check_sentence(error: InvalidInput) -> None:
    sentence = str(error)
    assert error.code
    assert error.expected
    assert len(sentence) < 900
    assert sentence == one_line(sentence)
    assert "Traceback" not in sentence
    assert "object at 0x" not in sentence


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60)))
@MANY
def test_any_bytes_are_a_voucher_or_an_error(raw: bytes | str) -> None:
    """Bytes that are no JSON, no UTF-8 or no object are refused in one sentence."""
    check_voucher_or_error(raw)


@given(ANYTHING)
@MANY
def test_any_json_is_a_voucher_or_an_error(document: Any) -> None:
    """Any document of any shape, given as text and as Python objects, alone and in the place of each part."""
    check_voucher_or_error(json.dumps(document))
    for whole in ({"code": "A", "discount": document}, {"code": document, "discount": {"type": "shipping"}}):
        check_voucher_or_error(json.dumps(whole))
        check_voucher_or_error(whole)
    for read in (parse_order, parse_request):
        try:
            read(json.dumps(document))
        except InvalidInput as error:
            check_sentence(error)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    found = []
    waiting = [document]
    while waiting:
        one = waiting.pop()
        pairs = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        for key, inner in pairs:
            found.append((one, key))
            waiting.append(inner)
    return found


def changed(document: Doc, strange: Any, chance: random.Random) -> Doc:
    """The document with one value replaced, left out, doubled or moved to another name."""
    document = copy.deepcopy(document)
    container, key = chance.choice(places(document))
    what = chance.randrange(4)
    if what == 0:
        container[key] = strange
    elif what == 1:
        del container[key]
    elif isinstance(container, dict):
        names = ["items", "when", "discount", "all", "not", "percent", "amount_minor", "quantity", "type", "value", "x"]
        container[chance.choice(names)] = container[key] if what == 2 else strange
    else:
        container.append(container[key] if what == 2 else strange)
    return document


@given(st.integers(0, 10**9), SCALARS, st.randoms(use_true_random=False))
@MANY
def test_a_good_document_made_strange_is_taken_or_refused(seed: int, strange: Any, chance: random.Random) -> None:
    """One or two changes in an order or in a voucher of any type: no change leads past the door into the engine."""
    good = cases.document(seed)
    bad = changed(good, strange, chance)
    if chance.random() < 0.5:
        bad = changed(bad, strange, chance)
    try:
        request = parse_request(json.dumps(bad))
    except InvalidInput as error:
        check_sentence(error)
    else:
        compiled = [compile_voucher(voucher) for voucher in request.vouchers]
        assert evaluate(request.order, compiled, request.codes, at=request.at, usage=request.usage)
    for voucher in good["vouchers"]:
        check_voucher_or_error(json.dumps(changed(voucher, strange, chance)))
