"""The only holder of a replica's secrets, its head key and the realm's VRF key, which it never shows.

Every signature has one purpose, and the signer builds what is signed itself: envelopes, heads, endorsements,
and its word on which head it composed.
A head is signed only through the sign-once register. Without a usable register the signer is in quarantine:
it still evaluates the VRF, so the replica can answer lookups, but signs nothing until the replica has a new
key.
"""

from __future__ import annotations

from keyserver.config import Config
from keyserver.machine import commands
from kv import crash_points
from kv.keys import u64
from verifier import encoding, epoch, realm
from verifier.crypto import hashing, signatures, vrf
from verifier.errors import ConfigError, E2eksError
from verifier.files import read_secret
from verifier.signonce import RegisterCorrupt, RegisterMissing, Row, SignOnceRegister, read_rows
from verifier.types import Realm

REKEY = "Stop this replica and run: keyserver keys rekey -c FILE"  # how every quarantine ends


class Quarantined(E2eksError):
    """This replica must not sign; the text says why."""


class WillNotSign(E2eksError):
    """What was given is not what this key signs."""


class Signer:
    """Signs for one replica of one realm. `register` None means quarantine. Any thread may call it."""

    def __init__(
        self,
        realm: Realm,
        seed: bytes,
        vrf_seed: bytes,
        register: SignOnceRegister | None,
        why: str = "this replica has no sign-once register",
    ) -> None:
        """`seed` of the head key, `vrf_seed` of the realm's VRF key, 32 bytes each. Raises ValueError if not.

        `why` there is no register is what `quarantined` then says.
        """
        self._realm = realm
        self._key = signatures.SigningKey(seed)
        self._vrf = vrf.VrfKey(vrf_seed)
        self._register = register
        self._quarantined = "" if register else why
        self.public_key = self._key.public_key
        self.key_id = hashing.key_id(self.public_key)
        self.vrf_public_key = self._vrf.public_key

    @property
    def quarantined(self) -> str:
        """Why this signer signs nothing, or ""."""
        return self._quarantined

    def quarantine(self, why: str) -> None:
        """Sign nothing from now on."""
        self._quarantined = self._quarantined or why

    def newest_signed(self) -> Row | None:
        """The row of the largest epoch this replica has signed, as its register knows it."""
        return self._register.newest() if self._register else None

    def signed(self, epoch: int) -> Row | None:
        """The register's row of an epoch. Raises StorageError once the register has failed or is closed."""
        return self._register.get(epoch) if self._register else None

    @property
    def floor(self) -> int:
        """Epochs up to this one are signed only if their row is still in the register."""
        return self._register.floor if self._register else 0

    def sign_envelope(self, envelope: bytes) -> bytes:
        """The signature (64 bytes) over the exact bytes of an Envelope. Raises Quarantined."""
        return self._sign(commands.envelope_message(self._realm.hash, envelope))

    def sign_head(self, head: bytes, *, log_index: int, digest: bytes) -> bytes:
        """The one signature (64 bytes) of this replica on the epoch of `head`, exact bytes of an EpochHead.

        `log_index` and `digest` say where the machine stood; they are kept beside it. The same head gives the
        same bytes again. Raises Quarantined, WillNotSign for a head of another realm, AlreadySigned,
        BelowFloor, StorageError, Malformed.
        """
        if self._register is None or self._quarantined:
            raise Quarantined(self._quarantined)
        parsed = encoding.decode_head(head)
        if (parsed.realm, parsed.realm_hash) != (self._realm.name, self._realm.hash):
            raise WillNotSign("the head is of another realm")
        message = epoch.replica_message(head, parsed.issue_time_ms)

        def make() -> Row:
            made = self._key.sign(message)
            return Row(parsed.epoch, parsed.hash, parsed.issue_time_ms, log_index, digest, made)

        signature = self._register.sign_once(parsed.epoch, parsed.hash, make).signature
        if not signatures.verify(self.public_key, message, signature):
            raise RegisterCorrupt(f"the signature kept for epoch {parsed.epoch} does not verify")
        crash_points.reach("S4")
        return signature

    def endorse(
        self, *, private_hash: bytes, index: bytes, entry_hash: bytes, proof_id: bytes, not_after_ms: int
    ) -> commands.Endorsement:
        """This replica's word that it verified the proof with id `proof_id` itself. Raises Quarantined."""
        message = commands.endorsement_message(
            self._realm.hash, private_hash, index, entry_hash, proof_id, not_after_ms
        )
        return commands.Endorsement(self.key_id, not_after_ms, self._sign(message))

    def state_composed(self, epoch: int, head_hash: bytes) -> bytes:
        """The signature (64 bytes) over this replica's word that it composed this head. Raises Quarantined.

        No signature on a head: it may be given again, and before the register knows the epoch.
        """
        return self._sign(composed_message(self._realm.hash, epoch, head_hash))

    def vrf_prove(self, user_id: str) -> tuple[bytes, bytes]:
        """Index (32 bytes) and VRF proof (80 bytes) of a user id that passed `realm.check_user_id`."""
        proof = vrf.prove(self._vrf, realm.user_id_alpha(self._realm.name, user_id))
        return vrf.index(vrf.proof_to_hash(proof)), proof

    def close(self) -> None:
        """Give the register free."""
        if self._register is not None:
            self._register.close()

    def _sign(self, message: bytes) -> bytes:
        if self._quarantined:
            raise Quarantined(self._quarantined)
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Signer(key_id={self.key_id.hex()})"


def composed_message(realm_hash: bytes, epoch: int, head_hash: bytes) -> bytes:
    """What a replica signs to say which head it has composed (proto/e2eks/v1/peers.proto)."""
    return hashing.tagged("e2eks/1/head-composed", realm_hash, u64(epoch), head_hash)


def load_signer(config: Config) -> Signer:
    """The signer of a configured replica; in quarantine if its register is missing.

    Raises ConfigError for secrets that are missing, not private or not this realm's, StorageError for a
    register that is damaged or in use.
    """
    seed, vrf_seed, key_id = _secrets(config)
    try:
        register = SignOnceRegister.open(config.sign_once_register, key_id=key_id)
    except RegisterMissing as error:
        return Signer(config.realm, seed, vrf_seed, None, why=f"{error}. {REKEY}")
    return Signer(config.realm, seed, vrf_seed, register)


def check_secrets(config: Config) -> None:
    """That the keys are this realm's and the register is there. Raises ConfigError.

    Does not open the register, so that a running replica can be checked.
    """
    _secrets(config)
    if not config.sign_once_register.is_file():
        raise ConfigError(
            f"the sign-once register {config.sign_once_register} is missing. This replica would answer "
            f"lookups but sign nothing: it may have signed before. {REKEY}"
        )


def _secrets(config: Config) -> tuple[bytes, bytes, bytes]:
    """Seeds of head key and VRF key, and the id of the head key. Raises ConfigError.

    A key that was not a replica's when the realm began must have a register of its own, as `keys rekey`
    makes it: otherwise it is a file in the wrong place.
    """
    seed, vrf_seed = read_secret(config.head_key), read_secret(config.vrf_key)
    name = config.realm.name
    if vrf.VrfKey(vrf_seed).public_key != config.realm.vrf_public_key:
        raise ConfigError(f"{config.vrf_key} is not the VRF key of realm {name}. Put the realm's key there")
    key_id = hashing.key_id(signatures.public_key(seed))
    if key_id not in config.realm.genesis_policy.keys:
        try:
            read_rows(config.sign_once_register, key_id=key_id)
        except (RegisterMissing, RegisterCorrupt):
            text = (
                f"{config.head_key} is not the key of a replica of realm {name}: its key id is "
                f"{key_id.hex()}, which {config.realm_file} does not list. Put this replica's own key there"
            )
            raise ConfigError(text) from None
    return seed, vrf_seed, key_id
