"""`python -m verifier.daemon`: the same as the command `verifier`."""

from verifier.daemon.cli import main

if __name__ == "__main__":
    main(prog_name="verifier")
