"""`python -m verifier.client` is `e2eks`."""

from verifier.client.cli import main

main(prog_name="e2eks")
