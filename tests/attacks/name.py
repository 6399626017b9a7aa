"""User ids: two spellings must never be two entries, nor one spelling two people."""

from __future__ import annotations

from e2eks.v1 import client_pb2
from samples import REALM

from attacks import wire_format as wire
from attacks.surface import Surface
from keyserver import requests


class Name(Surface):
    def make_user(self, id: str) -> bytes:  # noqa: A002 -- rows read better so
        """A lookup of a user id."""
        return client_pb2.LookupRequest(user_id=id).SerializeToString()

    def make_long_user(self, characters: int) -> bytes:
        """A user id of so many characters in all."""
        domain = "@example.test"
        return self.make_user("a" * (characters - len(domain)) + domain)

    def make_raw_user(self, data: str) -> bytes:
        """A lookup of bytes that need not be text."""
        return wire.bytes_field(2, bytes.fromhex(data))

    def judge_lookup(self, request: bytes) -> str:
        return requests.decode_lookup(request, REALM).user_id
