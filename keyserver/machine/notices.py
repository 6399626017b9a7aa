"""What may be announced AFTER a batch is written. Losing one loses nothing: all of it can be read from the
rows.
"""

from dataclasses import dataclass

from keyserver.machine.codes import Code


@dataclass(frozen=True, slots=True)
class CommandDecided:
    """The verdict on a command. For an update `epoch` is the first one that contains the entry, else 0."""

    command_id: bytes
    code: Code
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class HeadComposed:
    """The delimiter of `epoch` was accepted: the replicas owe their signatures."""

    epoch: int


@dataclass(frozen=True, slots=True)
class HeadSigned:
    """The head of `epoch` reached its majority: from now on clients and verifiers see it."""

    epoch: int


@dataclass(frozen=True, slots=True)
class RatificationAdded:
    """One more signature on the head of `epoch` is stored, a late replica's or a verifier's."""

    epoch: int
    key_id: bytes


@dataclass(frozen=True, slots=True)
class VerifierLogGrew:
    """The verifier log has `size` steps."""

    size: int


@dataclass(frozen=True, slots=True)
class VerifierListed:
    """A majority of replicas approved the verifier: its ratifications count."""

    public_key: bytes


@dataclass(frozen=True, slots=True)
class ReplicaContradiction:
    """A replica signed into the log another head hash for an epoch than ours: it or this replica diverged."""

    epoch: int
    key_id: bytes
    head_hash: bytes
    log_index: int


@dataclass(frozen=True, slots=True)
class VerifierContradiction:
    """A listed verifier validly signed another head of this epoch: `signed_head` is the evidence."""

    epoch: int
    key_id: bytes
    signed_head: bytes


Notice = (
    CommandDecided
    | HeadComposed
    | HeadSigned
    | RatificationAdded
    | VerifierLogGrew
    | VerifierListed
    | ReplicaContradiction
    | VerifierContradiction
)
