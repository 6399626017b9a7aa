"""What goes into a turn of the driver, and what comes out of it. Data only."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Protocol

from replication.raft.messages import Message


class Chance(Protocol):
    """Where chance comes from: random.Random is one."""

    def random(self) -> float:
        """Return a number 0 <= x < 1."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The clock of a cluster, in seconds. Raises ValueError when elections could not work with it."""

    election_min_s: float = 0.6  # a follower that heard no leader for so long, or up to
    election_max_s: float = 1.2  # so long, asks whether it should be the next
    heartbeat_s: float = 0.1
    quorum_s: float = 2.0  # a leader that heard no majority for so long is none any more
    settle_s: float = 5.0  # a proposal whose outcome is not known by then never will be

    def __post_init__(self) -> None:
        if not 0 < 3 * self.heartbeat_s < self.election_min_s < self.election_max_s:
            raise ValueError("elections take more than three heartbeats, election_max more than election_min")
        if self.quorum_s < self.election_min_s or self.settle_s <= 0:
            raise ValueError("quorum_s is at least election_min_s, settle_s is positive")


class Role(StrEnum):
    """What a member is in its term."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Outcome(Enum):
    """What became of a proposal."""

    COMMITTED = "committed"
    REFUSED = "refused"  # surely in nobody's log: propose it again
    UNKNOWN = "unknown"  # may be committed or not, now or later


@dataclass(frozen=True, slots=True)
class Received:
    """A message from a member, checked with check_message."""

    sender: str
    message: Message


@dataclass(frozen=True, slots=True)
class Connected:
    """Messages to the member can be sent from now on. What was sent on an earlier link may be lost."""

    member: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Messages to the member are lost from now on."""

    member: str


@dataclass(frozen=True, slots=True)
class Proposed:
    """Somebody here wants the payload committed. `token` is new and comes back in `settled`, once."""

    token: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Nobody waits for the token any more; it need not be settled."""

    token: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """If this member leads, another one is to lead as soon as it has everything."""


Event = Received | Connected | Disconnected | Proposed | Forgotten | HandOver


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The outcome of one turn. Everything it speaks of is durable here."""

    outgoing: tuple[tuple[str, Message], ...] = ()  # (member, message), to be sent AFTER turn() returned
    committed_to: int  # application index up to which entries are committed, 0 for none
    settled: tuple[tuple[int, Outcome], ...] = ()  # (token, outcome)
    role: Role
    term: int
    leader: str | None  # as far as known here


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStanding:
    """What a member knows of another one."""

    member: str
    connected: bool
    heard_s: float | None  # seconds since its last message, None: never
    matched_to: int | None  # application index up to which it has our log; None unless we lead
