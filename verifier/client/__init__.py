"""The client: a library that believes no server, and the command `e2eks`."""
