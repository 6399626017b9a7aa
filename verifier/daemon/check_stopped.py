"""Check the configured verifier while it does not run, as `verifier check` does."""

from __future__ import annotations

from kv.interface import StorageError, StorageInUse
from kv.leveldb import LevelDBStore
from verifier.crypto import hashing, signatures
from verifier.daemon.check import REGISTER, STORAGE, Recorded, Report, check
from verifier.daemon.config import Config
from verifier.errors import ConfigError
from verifier.files import read_secret
from verifier.limits import MAX_U64
from verifier.signonce import read_rows


def check_stopped(config: Config) -> Report:
    """Check database and register. What cannot be read is a fault.

    Raises ConfigError where there is nothing, or while the verifier runs.
    """
    if not config.data.is_dir():
        raise ConfigError(f"there is no database in {config.data}: the verifier has not run yet")
    public_key = signatures.public_key(read_secret(config.key, "key"))
    unread, recorded = Report(), Recorded(public_key, MAX_U64, {})
    try:
        recorded = Recorded(
            public_key, *read_rows(config.sign_once_register, key_id=hashing.key_id(public_key))
        )
    except StorageError as error:
        unread.fault(REGISTER, "", str(error))
    try:
        store = LevelDBStore(config.data, create=False)
    except StorageInUse:
        raise ConfigError(f"the verifier of {config.path} runs: stop it, then check") from None
    except StorageError as error:
        unread.fault(STORAGE, "", str(error))
        return unread
    try:
        report = check(store, config.realm, recorded)
    finally:
        store.close()
    report.counts += unread.counts
    report.listed += unread.listed
    return report
