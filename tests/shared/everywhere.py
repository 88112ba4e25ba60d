"""Reads requests (NDJSON) on standard input, prints one SHA-256 of all that the engine says of them, and its version.

Needs nothing but the shared package's own msgspec and tzdata: `test_everywhere` runs it under other Pythons.
"""

from __future__ import annotations

import hashlib
import sys

from tallystick_shared.engine import (
    ENGINE_VERSION,
    best,
    best_json,
    compile_voucher,
    evaluate,
    qualified_json,
    qualify,
    result_json,
)
from tallystick_shared.errors import InvalidInput
from tallystick_shared.model import order_json, parse_request, voucher_json


def main() -> None:
    digest, lines = hashlib.sha256(), 0
    for line in sys.stdin.buffer:
        lines += 1
        try:
            asked = parse_request(line)
        except InvalidInput as error:
            digest.update(str(error).encode())
            continue
        compiled = [compile_voucher(voucher) for voucher in asked.vouchers]
        given = (asked.order, compiled, asked.codes)
        digest.update(order_json(asked.order))
        digest.update(b"".join(map(voucher_json, asked.vouchers)))
        digest.update(result_json(evaluate(*given, at=asked.at, usage=asked.usage)))
        digest.update(best_json(best(*given, at=asked.at, usage=asked.usage)))
        digest.update(qualified_json(qualify(*given, at=asked.at, usage=asked.usage)))
    print(digest.hexdigest(), lines, ENGINE_VERSION)


if __name__ == "__main__":
    main()
