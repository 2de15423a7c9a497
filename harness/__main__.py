"""`python -m harness`: the command line, with errors a user can act on."""

from __future__ import annotations

import shlex
import sys
from typing import NoReturn

STOPPED = 130  # exit status after Ctrl-C, by the shell's custom; typer turns KeyboardInterrupt into it


def main() -> None:
    from harness.errors import HarnessError

    try:
        from harness.cli import app
    except ModuleNotFoundError as error:
        _say_that_the_environment_is_off(error)

    try:
        app()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != STOPPED:
            raise
        words = shlex.join(sys.argv[1:])
        print(f"\nstopped; nothing finished is lost. Go on with:\n  python -m harness {words}", file=sys.stderr)
        sys.exit(STOPPED)


def _say_that_the_environment_is_off(error: ModuleNotFoundError) -> NoReturn:
    """The first thing that a new user may meet; any other missing module is a fault of ours and keeps its traceback."""
    if error.name != "typer":
        raise error
    print(
        f"error: {sys.executable} has not what the harness needs: {error}\n"
        "  expected: the environment that `make demo` makes, switched on\n"
        "  next: source .venv/bin/activate; or, without make: python -m pip install --editable .",
        file=sys.stderr,
    )
    sys.exit(2)


if __name__ == "__main__":
    main()
