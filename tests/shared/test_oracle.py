"""The engine against a second one, written from engine.md with fractions: to the cent, on seeded cases."""

from __future__ import annotations

import json

import pytest

from tallystick_shared.engine import compile_voucher, evaluate, result_json
from tallystick_shared.model import parse_request
from tests.shared import cases, oracle


@pytest.mark.parametrize("block", range(10))
def test_the_engine_agrees_with_the_oracle(block: int) -> None:
    """Amounts, shares, order of application and reasons are the same in every generated case."""
    for seed in range(block * 400, block * 400 + 400):
        document = cases.document(seed)
        request = parse_request(json.dumps(document))
        compiled = [compile_voucher(voucher) for voucher in request.vouchers]
        result = json.loads(result_json(evaluate(request.order, compiled, at=request.at, usage=request.usage)))
        for applied in result["applied"]:
            assert applied.pop("why")
        for refused in result["refused"]:
            assert refused.pop("detail")
        assert result == oracle.evaluate(document), f"seed {seed}"
