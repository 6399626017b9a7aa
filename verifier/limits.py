"""Every limit of the protocol, once, with its reason. Edge and step enforce the same constants (rules level
1)."""

RULES = 1
SUITE = 1

HASH_BYTES = 32
KEY_BYTES = 32
NONCE_BYTES = 32
SIGNATURE_BYTES = 64
VRF_PROOF_BYTES = 80
REQUEST_ID_BYTES = 16

USER_ID_BYTES = 254  # RFC 5321: a path of 256 octets holds an address of 254
REALM_BYTES = 254  # a realm is named like a domain or an address
ENTRY_BYTES = 4 * 1024  # 16 policy keys with their ids need 1.3 KiB
PROFILE_BYTES = 64 * 1024  # an OpenPGP certificate with a few subkeys
PROFILE_KEYS = 64
REGISTRATION_PROOF_BYTES = 64 * 1024  # a signed mail with its headers
REQUEST_BYTES = 256 * 1024  # profile, registration proof and an update, with room
HEAD_BYTES = 8 * 1024  # a head that names 64 replicas anew
RATIFICATIONS_PER_HEAD = 64

UPDATE_POLICY_KEYS = 16
UPDATE_SIGNATURES = 32  # the current and the new policy, all keys of both
VERIFICATION_POLICY_KEYS = 64
QUORUM_CANDIDATES = 64
QUORUM_DEPTH = 4  # with the root; bounds recursion on what strangers send

TREE_NEIGHBORS = 256  # bits of an index
HISTORY_PATH = 128  # two audit paths of 64 levels
LOG_ENTRY_BYTES = 1024 * 1024
COMMANDS_PER_ENTRY = 1024  # empty commands are cheap to send and dear to apply
ENDORSEMENTS = 64
APPROVALS = VERIFICATION_POLICY_KEYS + 1  # of a replica set change: all present keys and the added one
VERIFIER_STEPS_BYTES = 1024 * 1024  # one streamed message
VERIFIERS = 64

UPDATES_PER_DAY = 20  # of one index, in log time
DAY_MS = 24 * 3600 * 1000
DELIMITER_DRIFT_MS = 10_000  # a delimiter's time and the log's time
TICK_AHEAD_MS = 5_000  # a replica this far ahead of log time owes a Tick when an epoch is due
SKEW_MS = 60_000  # between a client's clock and those of replicas and verifiers
ENDORSEMENT_MS = 300_000  # how long a verified registration proof may wait for its commit
MAX_U64 = 2**64 - 1
SIGNED_HEAD_BYTES = 32 * 1024  # a head and 64 signatures with their key ids
LOOKUP_PROOF_BYTES = 128 * 1024  # profile, entry, signed head and 256 neighbours, with room
CONSISTENCY_PROOF_BYTES = 128 * 1024
REALM_JSON_BYTES = 1024 * 1024  # 64 verifiers with their TLS roots
