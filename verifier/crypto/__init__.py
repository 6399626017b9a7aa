"""Suite 1: SHA-256 with domain separation, Ed25519, the RFC 9381 VRF and profile commitments.

Nothing here draws randomness or keeps a secret longer than the object the caller holds.
"""
