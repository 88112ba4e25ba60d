"""Engine and oracle side by side on one document: what each says, and the first difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tallystick_shared import engine
from tallystick_shared.engine import Allowance, Reason, Result, compile_voucher, result_json
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import Request
from tests.shared import cases, oracle
from tests.shared.oracle_rules import Doc, fold, refund


@dataclass(frozen=True)
class Engine:
    """The calls that are compared; a test replaces one to see that a wrong one is noticed."""

    evaluate: Callable[..., Result] = engine.evaluate
    best: Callable[..., Any] = engine.best
    qualify: Callable[..., Any] = engine.qualify
    refund: Callable[..., int] = engine.refund_minor


REAL = Engine()


def allowances(document: Doc) -> Mapping[str, Allowance] | None:
    given = document.get("allowance")
    return None if given is None else {fold(code): Allowance(**allowed) for code, allowed in given.items()}


def called(call: Callable[..., Any], document: Doc, request: Request | None = None) -> Any:
    """One of the engine's calls on everything that the document says."""
    request = request or cases.read(document)
    return call(
        request.order,
        [compile_voucher(voucher) for voucher in request.vouchers],
        request.codes,
        at=request.at,
        usage=request.usage,
        allowance=allowances(document),
    )


def bare(result: Result) -> Doc:
    """The result as its JSON says it, without what is for people, which must be there."""
    found: Doc = json.loads(result_json(result))
    for applied in found["applied"]:
        assert applied.pop("why")
    for refused in found["refused"]:
        assert refused.pop("detail")
    return found


def full(result: Result) -> Doc:
    found: Doc = json.loads(result_json(result))
    return found


def _bare_best(found: Any) -> Doc:
    return {
        "codes": list(found.codes),
        "saved_minor": found.saved_minor,
        "exact": found.exact,
        "result": bare(found.result),
    }


def _bare_qualified(found: Any) -> list[Doc]:
    return [
        {"code": one.code, "discount_minor": one.discount_minor, "reason": one.reason and Reason(one.reason).value}
        for one in found
    ]


def difference(
    document: Doc,
    request: Request | None = None,
    *,
    using: Engine = REAL,
    meant: Doc | None = None,
    choosing: bool = True,
) -> str | None:
    """The first difference in one line, or None; `best` and `qualify` are compared where `choosing`.

    `request` and `meant`, the oracle's result, are for callers who have them already.
    """
    said = bare(called(using.evaluate, document, request))
    meant = meant or oracle.evaluate(document)
    found = differs("evaluate", said, meant) or _returns(document, meant, using)
    if found or not choosing:
        return found
    qualified = differs("qualify", _bare_qualified(called(using.qualify, document, request)), oracle.qualify(document))
    return qualified or differs("best", _bare_best(called(using.best, document, request)), oracle.best(document))


def _returns(document: Doc, result: Doc, using: Engine) -> str | None:
    """Each line that has a share, returned in three parts."""
    for line, lowered in zip(document["order"]["lines"], result["lines"], strict=True):
        price, quantity, share = line["unit_price_minor"], line["quantity"], lowered["discount_minor"]
        if not share:
            continue
        cuts = sorted([0, share % quantity, share // 3 % quantity, quantity])
        for start, end in pairwise(cuts):
            if start < end:
                said = using.refund(price, quantity, share, start, end - start)
                meant = refund(price, quantity, share, start, end - start)
                if said != meant:
                    return f"refund of units {start} to {end} of line {line['id']}: engine {said}, oracle {meant}"
    return None


def differs(call: str, said: Any, meant: Any) -> str | None:
    """The first place where two documents differ, in one line."""
    if said == meant and json.dumps(said) == json.dumps(meant):
        return None
    if isinstance(said, dict) and isinstance(meant, dict) and list(said) == list(meant):
        inner = [differs(f"{call}.{key}", said[key], meant[key]) for key in said]
        return next(one for one in inner if one)
    if isinstance(said, list) and isinstance(meant, list) and len(said) == len(meant):
        inner = [differs(f"{call}[{at}]", one, other) for at, (one, other) in enumerate(zip(said, meant, strict=True))]
        return next(one for one in inner if one)
    return f"{call}: engine {json.dumps(said)}, oracle {json.dumps(meant)}"


def fails(document: Doc, using: Engine = REAL) -> bool:
    """Whether the door lets the document in, and engine and oracle differ on it: what a failure is shrunk by."""
    try:
        request = cases.read(document)
    except (InvalidInput, AttributeError):
        return False
    try:
        return difference(document, request, using=using) is not None
    except Exception:  # noqa: BLE001 a crash of either is what is looked for, and is shrunk as well
        return True
