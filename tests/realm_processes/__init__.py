"""A realm of one replica and several verifiers as real processes on loopback, and people who use it.

`realm` starts, kills and stops processes; `calls` are gRPC calls on raw bytes; `people` have signing keys,
certificates and the client library; `load` and `ledger` are for the tests that kill.
"""
