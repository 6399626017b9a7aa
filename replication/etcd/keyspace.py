"""What the log keeps in etcd: the names of its keys, and their values. Decides; calls nobody.

<prefix>entries/<member>.<session>.<number>   payloads proposed together; made once, never with other contents
<prefix>base                                  where the entries in etcd begin, and who must have them
<prefix>replicas/<member>                     how far that replica has stored the log
<prefix>leader                                a name, as long as its lease lasts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from e2eks.etcd import api_pb2 as api
from e2eks.etcd import log_pb2
from google.protobuf.message import DecodeError

from kv.interface import StorageError
from kv.keys import prefix_end
from replication.chain import FIRST_LINK, LINK_BYTES


@dataclass(frozen=True, slots=True)
class Base:
    """Entries up to `index`, created up to `revision`, are no longer in etcd. `replicas` need the rest."""

    index: int
    link: bytes
    revision: int
    replicas: tuple[str, ...]

    def encode(self) -> bytes:
        return log_pb2.Base(
            index=self.index, link=self.link, revision=self.revision, replicas=sorted(set(self.replicas))
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, value: bytes) -> Base:
        """Raises StorageError: nobody else writes there."""
        try:
            row = log_pb2.Base.FromString(value)
        except DecodeError:
            raise StorageError("the base row in etcd is damaged") from None
        return cls(row.index, _link(row.link), row.revision, tuple(row.replicas))


@dataclass(frozen=True, slots=True)
class Report:
    """A replica has stored what was created up to `revision`: the entries up to `index`, with its link."""

    index: int = 0
    link: bytes = FIRST_LINK
    revision: int = 0

    def encode(self) -> bytes:
        return log_pb2.Report(index=self.index, link=self.link, revision=self.revision).SerializeToString(
            deterministic=True
        )

    @classmethod
    def decode(cls, value: bytes) -> Report:
        """Raises StorageError: nobody else writes there."""
        try:
            row = log_pb2.Report.FromString(value)
        except DecodeError:
            raise StorageError("the report of a replica in etcd is damaged") from None
        return cls(row.index, _link(row.link), row.revision)


def encode_batch(payloads: Sequence[bytes]) -> bytes:
    """Return the value of an entries key."""
    return log_pb2.Batch(payloads=payloads).SerializeToString(deterministic=True)


def decode_batch(value: bytes) -> tuple[bytes, ...]:
    """Return the payloads of an entries key. Raises StorageError: they cannot be numbered by guessing."""
    try:
        return tuple(log_pb2.Batch.FromString(value).payloads)
    except DecodeError:
        raise StorageError("an entry in etcd is damaged") from None


class Keyspace:
    """The keys below one prefix."""

    def __init__(self, prefix: str) -> None:
        """Raises ValueError for an empty prefix: a log is not the only thing in the world."""
        root = prefix.rstrip("/").encode()
        if not root:
            raise ValueError("the prefix of a log in etcd is not empty")
        self.root = root + b"/"
        self.base = self.root + b"base"
        self.leader = self.root + b"leader"
        self.entries = self.root + b"entries/"
        self.replicas = self.root + b"replicas/"

    def entry(self, session: str, number: int) -> bytes:
        """Return the key of a proposal: `session` is of one process alone."""
        return b"%b%b.%d" % (self.entries, session.encode(), number)

    def report(self, member: str) -> bytes:
        """Return the key of a replica's report."""
        return self.replicas + member.encode()

    def member_of(self, key: bytes) -> str:
        """Return whose report lies under this key."""
        return key.removeprefix(self.replicas).decode(errors="replace")


def every(prefix: bytes) -> api.RangeRequest:
    """Read all keys that begin with `prefix`."""
    return api.RangeRequest(key=prefix, range_end=prefix_end(prefix))


def get(key: bytes) -> api.RequestOp:
    """Read one key as it is now: a revision within a transaction may harm etcd (its issue 18667)."""
    return api.RequestOp(request_range=api.RangeRequest(key=key))


def put(key: bytes, value: bytes, lease: int = 0) -> api.RequestOp:
    """Write one key."""
    return api.RequestOp(request_put=api.PutRequest(key=key, value=value, lease=lease))


def delete(key: bytes) -> api.RequestOp:
    """Delete one key."""
    return api.RequestOp(request_delete_range=api.DeleteRangeRequest(key=key))


def unchanged(key: bytes, revision: int) -> api.Compare:
    """Demand that a key was last written at this revision; 0: that it is not there."""
    return api.Compare(result=api.Compare.EQUAL, target=api.Compare.MOD, key=key, mod_revision=revision)


def only(response: api.ResponseOp) -> api.KeyValue | None:
    """Return what get() found."""
    return next(iter(response.response_range.kvs), None)


def _link(value: bytes) -> bytes:
    if len(value) != LINK_BYTES:
        raise StorageError("a link of the log in etcd is damaged")
    return value
