"""A till as a process of its own, for the kills: each line on standard input is one sync.

It says `started` before the sync and `done` or `down` after it, so that whoever kills it knows what was in flight.
"""

from __future__ import annotations

import sys

from tallystick_client import LineError, Till


def main() -> None:
    with Till.open(sys.argv[1]) as till:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for _ in sys.stdin:
            sys.stdout.write("started\n")
            sys.stdout.flush()
            try:
                till.sync()
                sys.stdout.write("done\n")
            except LineError:
                sys.stdout.write("down\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
