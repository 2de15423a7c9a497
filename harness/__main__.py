"""`python -m harness`: the command line, with errors a user can act on."""

from __future__ import annotations

import sys


def main() -> None:
    from harness.cli import app
    from harness.errors import HarnessError

    try:
        app()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        words = " ".join(sys.argv[1:])
        print(f"\nstopped; nothing finished is lost. Go on with:\n  python -m harness {words}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
