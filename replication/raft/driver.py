"""One member of a cluster, turn by turn. The order of a turn is the argument for its safety.

No thread, no clock, no chance of its own: the simulator and the shell drive the same code.
"""

from collections.abc import Callable, Sequence

from replication.raft.events import Chance, Event, PeerStanding, Timing, Turn
from replication.raft.journal import Journal


class Driver:
    """A member of a cluster of `members` (its own name included), on its journal.

    After any exception out of turn() the process must end: what is on the disk is known only after opening
    the journal again. All methods but `journal.read` and its like are called by one thread at a time.
    """

    def __init__(
        self,
        *,
        member: str,
        members: Sequence[str],
        journal: Journal,
        clock: Callable[[], float],
        chance: Chance,
        timing: Timing,
    ) -> None:
        raise NotImplementedError

    def turn(self, inbox: Sequence[Event]) -> Turn:
        """Take in what happened, make it durable, and say what to send. Blocks on the disk.

        Raises StorageError, and JournalConflict when a leader contradicts what was committed.
        """
        raise NotImplementedError

    def wait_s(self) -> float:
        """Return how many seconds the next turn may be away if nothing happens until then."""
        raise NotImplementedError

    def peers(self) -> tuple[PeerStanding, ...]:
        """Return what is known of the other members, in the order of their names."""
        raise NotImplementedError
