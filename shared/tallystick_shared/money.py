"""Money in whole minor units: rounding, shares that add up, and the currencies.

Source: engine.md, "Rounding and shares". Everything here is exact integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MONEY_MAX: Final = 10**12
"""The largest amount a single field may hold, in minor units."""

ORDER_TOTAL_MAX: Final = 10**15
"""The largest goods total of an order, in minor units: below 2**53, so that every JSON reader gets it exactly."""

_EXPONENT_0: Final = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_EXPONENT_3: Final = "BHD IQD JOD KWD LYD OMR TND"
_EXPONENT_4: Final = "CLF UYW"
# ANG and BGN were withdrawn in 2025 and 2026; orders and journals in them are still about.
_EXPONENT_2: Final = """
AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY
COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR
JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO
NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS
TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG
"""

CURRENCY_EXPONENTS: Final[dict[str, int]] = {
    code: exponent
    for exponent, codes in ((0, _EXPONENT_0), (2, _EXPONENT_2), (3, _EXPONENT_3), (4, _EXPONENT_4))
    for code in codes.split()
}
"""ISO 4217 code -> number of decimals. Metals, test codes and the like have none and are not currencies here."""


def round_half_away(numerator: int, denominator: int) -> int:
    """numerator / denominator as a whole number, halves away from zero. `denominator` is above 0."""
    if numerator < 0:
        return -((-2 * numerator + denominator) // (2 * denominator))
    return (2 * numerator + denominator) // (2 * denominator)


def share(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split in proportion to `weights`, which are 0 or more: whole units that add up to `total` exactly.

    Exact shares are rounded down and the missing units go to the largest remainders, ties to the earlier. Raises
    `ValueError` where there is something to split and every weight is 0.
    """
    whole = sum(weights)
    if whole == 0:
        if total:
            raise ValueError("nothing to share over: every weight is 0")
        return [0] * len(weights)
    shares = [total * weight // whole for weight in weights]
    missing = total - sum(shares)
    if missing:
        _give(missing, shares, [total * weight % whole for weight in weights])
    return shares


def apportion(total: int, numerators: Sequence[int], denominator: int) -> list[int]:
    """Whole shares adding up to `total`, each less than one unit off its exact share numerators[i] / denominator.

    `total` is the exact sum rounded to a whole number, up or down.
    """
    shares = [numerator // denominator for numerator in numerators]
    missing = total - sum(shares)
    if missing:
        _give(missing, shares, [numerator % denominator for numerator in numerators])
    return shares


def _give(missing: int, shares: list[int], remainders: list[int]) -> None:
    """One unit more to each of the `missing` largest remainders, ties to the earlier."""
    if missing == 1:
        shares[remainders.index(max(remainders))] += 1
        return
    # a stable sort keeps the earlier line first among equal remainders, reversed or not
    for index in sorted(range(len(shares)), key=remainders.__getitem__, reverse=True)[:missing]:
        shares[index] += 1


def refund_minor(unit_price_minor: int, quantity: int, share_minor: int, already_returned: int, units: int) -> int:
    """What returning `units` more units of a line pays, in minor units, after `already_returned` of its `quantity`.

    `share_minor` is the sum of the line's frozen shares. It lies evenly on the units, the first ones carrying one
    minor unit more, and units come back in that order: returning all, one by one, pays the whole line back. Raises
    `ValueError` where more units would come back than were sold, or the shares are not within the line's price.
    """
    if units < 0 or already_returned < 0 or already_returned + units > quantity:
        raise ValueError("a return takes back units that were sold and not yet returned")
    if not 0 <= share_minor <= unit_price_minor * quantity:
        raise ValueError("the shares of a line lie between 0 and its price")
    each, dearer = divmod(share_minor, quantity)
    with_one_more = max(0, min(already_returned + units, dearer) - already_returned)
    return units * (unit_price_minor - each) - with_one_more


def format_minor(minor: int, currency: str) -> str:
    """For people: 500 of USD is "5.00", of JPY "500", of KWD "0.500". An unknown currency counts as 2 decimals."""
    exponent = CURRENCY_EXPONENTS.get(currency, 2)
    if exponent == 2 and minor >= 0:  # nearly always, and this is in the path of every `why`
        return f"{minor // 100}.{minor % 100:02d}"
    if not exponent:
        return str(minor)
    whole, part = divmod(abs(minor), 10**exponent)
    return f"{'-' if minor < 0 else ''}{whole}.{part:0{exponent}d}"
