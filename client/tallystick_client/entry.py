"""The `tallystick` command: whatever happens below, a user reads one sentence and never a traceback."""

from __future__ import annotations

import sys

from tallystick_client.errors import LineError, NotNow, RemoteError, TallystickError

REFUSED, MISUSE, LINE_DOWN, NOT_TRUSTED, INTERNAL, INTERRUPTED = 1, 2, 3, 4, 70, 130
"""Exit codes; 0 is success."""


def main() -> None:
    """Runs the command line and exits."""
    try:
        from tallystick_client.cli import run

        code = run(sys.argv[1:])
        sys.stdout.flush()
    except TallystickError as error:
        say(str(error), error.code)
        code = exit_code(error)
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        say("the command line needs two more packages: pip install 'tallystick-client[cli]'", "NO_CLI")
        code = MISUSE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has left; the interpreter must not complain about it on its way out
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115 # lives until the process ends, in a moment
        code = REFUSED
    except Exception as error:  # noqa: BLE001 # the outermost place: nobody above could make a sentence of it
        say(f"something went wrong that should not have: {type(error).__name__}: {error}", "INTERNAL")
        code = INTERNAL
    sys.exit(code)


def exit_code(error: TallystickError) -> int:
    if isinstance(error, NotNow):
        return REFUSED
    if isinstance(error, LineError):
        return LINE_DOWN
    return NOT_TRUSTED if isinstance(error, RemoteError) else MISUSE


def say(sentence: str, code: str) -> None:
    """One line on standard error."""
    sys.stderr.write(f"tallystick: {' '.join(sentence.split())} ({code})\n")
