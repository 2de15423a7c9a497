"""`python -m harness`: the command line, with errors a user can act on."""

from __future__ import annotations

import shlex
import sys

STOPPED = 130  # exit status after Ctrl-C, by the shell's custom; typer turns KeyboardInterrupt into it


def main() -> None:
    from harness.cli import app
    from harness.errors import HarnessError

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


if __name__ == "__main__":
    main()
