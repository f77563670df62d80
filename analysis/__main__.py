"""`python -m analysis`: the command line (cli/), and Ctrl-C before it is there."""

import sys


def main() -> None:
    """Run a command; the status is 130 where Ctrl-C comes while the command line is being imported."""
    try:
        from .cli.main import main as run
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
