"""A realm of replicas and verifiers as real processes on loopback, and people who use it.

`realm` starts, kills and stops processes; `calls` are gRPC calls on raw bytes; `people` have signing keys,
certificates and the client library; `load` and `ledger` are for the tests that kill; `cluster` has several
replicas, with `links` between them to cut, and `changes` that their operators make.
"""
