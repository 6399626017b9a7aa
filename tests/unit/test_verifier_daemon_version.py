"""The version of a verifier's database."""

import pytest

from keyserver.testing import small_realm
from kv.interface import StorageError
from kv.memory import MemoryDisk, MemoryStore
from verifier.daemon.database import FORMAT, VERSION, claim

KEY_ID = bytes(32)


def test_a_new_database_says_its_version_and_is_recognised() -> None:
    store = MemoryStore(MemoryDisk())
    realm = small_realm().realm
    claim(store, realm, KEY_ID)
    assert store.get(VERSION) == FORMAT
    claim(store, realm, KEY_ID)


@pytest.mark.parametrize("version", [b"2", b"", None])
def test_a_database_of_another_version_is_refused_with_both_versions(version: bytes | None) -> None:
    store = MemoryStore(MemoryDisk())
    realm = small_realm().realm
    claim(store, realm, KEY_ID)
    store.write({VERSION: version})
    with pytest.raises(StorageError, match=r"version of the verifier's database is .*reads '1' only"):
        claim(store, realm, KEY_ID)
