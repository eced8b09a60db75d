"""The door of the command line: Ctrl-C is one line even while the rest is being imported."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line."""
    try:
        from xpnn import cli

        cli.main()
    except KeyboardInterrupt:
        print("xpnn: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
