"""`python -m keyserver`: the same as the command `keyserver`."""

from keyserver.cli.commands import main

if __name__ == "__main__":
    main()
