"""How much disk an update takes for ever, by part; nothing of it is deleted by this version."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from bench_measure import Measured, Plan
from bench_realm import Ground, Growth, name_of, set_up, temporary_folder
from bench_replay import replay, streamed

from keyserver.machine.tables import Tables
from kv.leveldb import LevelDBStore

UPDATES_AN_EPOCH = 250
PROFILE_PADDING = 64  # with its application's name and the user's, about what an SSH key takes


def disk(plan: Plan) -> Iterator[Measured]:
    """Files of a replica and a verifier, and rows by table: registrations, then one later update each."""
    users = plan.size(10_000, 200)
    ground = set_up(verifiers=2)
    names = [name_of(number) for number in range(users)]
    before: Mapping[str, int] = {}
    for kind in ("registration", "update"):
        with Growth(ground) as growth:
            for first in range(0, users, UPDATES_AN_EPOCH):
                growth.update(names[first : first + UPDATES_AN_EPOCH], PROFILE_PADDING)
                growth.close_epoch()
        after = _parts(ground)
        metrics = {name: (size - before.get(name, 0)) / users for name, size in after.items()}
        params = {"kind": kind, "updates": users, "updates_an_epoch": UPDATES_AN_EPOCH, "verifiers": 2}
        yield Measured("disk", params, metrics)
        before = after


def _parts(ground: Ground) -> dict[str, int]:
    """Bytes so far, by part; what a replica keeps, then what is in its tables, then a verifier's database."""
    data = ground.config.data
    with ground.store() as store:  # opening moves rows from LevelDB's own log into its tables
        rows = {
            f"rows_{table.name}_bytes": sum(len(key) + len(row) for key, row in store.scan(*table.span()))
            for table in Tables.all()
        }
        messages = streamed(store)
    verifier = temporary_folder() / "verifier"
    with closing(LevelDBStore(verifier)) as replayed:
        replay(replayed, ground.realm, messages)
    LevelDBStore(verifier).close()
    files = {
        "log_bytes": _size(data / "log"),
        "database_bytes": _size(data / "db"),
        "register_bytes": ground.config.sign_once_register.stat().st_size,
    }
    return {
        "bytes_per_update": sum(files.values()),
        **files,
        **{name: size for name, size in rows.items() if size},
        "verifier_database_bytes": _size(verifier),
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
