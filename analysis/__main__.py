"""`python -m analysis`: the command line (cli/)."""

from .cli.main import main

if __name__ == "__main__":
    main()
