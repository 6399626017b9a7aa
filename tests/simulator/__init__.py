"""The simulator: whole realms, replicas to clients, in one thread, from one seed. See README.md."""
