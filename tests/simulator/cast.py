"""Who acts in a schedule: realms, users and their first updates, made once for all schedules of a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from workload.cast import Key, User, derive, make_realm

from verifier import realm as realms
from verifier.crypto import vrf
from verifier.types import Realm

REALM = "example.org"
USERS = 36


@dataclass(frozen=True)
class Cast:
    """The keys of a realm of so many replicas and verifiers. `seeds` are those of the same names."""

    realm: Realm
    replicas: tuple[Key, ...]
    verifiers: tuple[Key, ...]

    @property
    def vrf_seed(self) -> bytes:
        return derive("key", "vrf", REALM)


def seed_of(*names: object) -> bytes:
    """The seed of the `Key` of these names."""
    return derive("key", *names)


@cache
def cast(replicas: int, verifiers: int) -> Cast:
    """The same keys for every schedule of these numbers."""
    made = tuple(Key("simulated", "replica", number) for number in range(replicas))
    watching = tuple(Key("simulated", "verifier", number) for number in range(verifiers))
    return Cast(make_realm(made, watching, REALM), made, watching)


@cache
def _place(user_id: str) -> tuple[bytes, Key]:
    key = vrf.VrfKey(derive("key", "vrf", REALM))
    proof = vrf.prove(key, realms.user_id_alpha(REALM, user_id))
    return vrf.index(vrf.proof_to_hash(proof)), Key("device", user_id)


def user(number: int) -> User:
    """A user who has registered nothing yet."""
    user_id = f"u{number}@{REALM}"
    index, key = _place(user_id)
    return User(index, user_id, [key])
