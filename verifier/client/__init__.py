"""The light verifier: asks, checks, remembers what it has seen."""
