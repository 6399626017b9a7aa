"""What must be true: the rules of a realm, once, for the server's step, the verifier daemon and the client.

Every module above `client/` and `daemon/` decides and never acts: no clock, no randomness, no IO, no logging.
"""
