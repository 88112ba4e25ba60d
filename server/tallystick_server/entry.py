"""The outermost layer: whatever happens inside, a user sees one sentence and an exit code, never a traceback.

0 done; 1 something unexpected; 2 bad input or misuse; 3 the line or the database, try again; 130 interrupted.
"""

from __future__ import annotations

import os
import sys

from tallystick_shared.errors import LineError, TallystickError

DEBUG_VARIABLE = "TALLYSTICK_DEBUG"


def main() -> None:
    """The command `tallystick-server`."""
    try:
        from tallystick_server.cli import run

        run(sys.argv[1:])
    except TallystickError as error:
        _say(f"{error.message} ({error.code})")
        sys.exit(3 if isinstance(error, LineError) else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # whoever read our output has gone; what is still buffered has nowhere to go either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        _say(f"something unexpected happened: {type(error).__name__}; {DEBUG_VARIABLE}=1 shows the whole of it")
        sys.exit(1)


def _say(sentence: str) -> None:
    sys.stderr.write(f"tallystick-server: {sentence}\n")
