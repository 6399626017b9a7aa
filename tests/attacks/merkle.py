"""Trees: paths cut, stretched and misread; a user hidden, an entry slipped in, a head rewritten."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from e2eks.v1 import client_pb2
from samples import BOB, REALM, index_of, make_entry, make_revocation, nonce_of
from samples.directory import ZERO, Directory, bit, log_path, log_root, tree_path, tree_root

from attacks.surface import Surface, flipped
from verifier import encoding, proof_encoding
from verifier.client.outcome import status_of
from verifier.consistency import verify_consistency
from verifier.lookup import Trust, verify_lookup
from verifier.merkle import history
from verifier.types import SignedHead

USER, OTHER, NOBODY = "user0@example.test", "user1@example.test", "nobody@example.test"
PROFILE = encoding.encode_profile({"ssh": b"ssh-ed25519"})
TRUST = Trust(REALM, REALM.verification_policy.quorum, REALM.genesis_policy)
EPOCHS = 7
HELD = 3  # the epoch a client holds when it asks for a consistency proof
ANY_HASH = b"\x05" * 32

SPOILED: Mapping[str, Callable[[tuple[bytes, ...]], tuple[bytes, ...]]] = {
    "cut": lambda path: path[:-1],
    "cut at the top": lambda path: path[1:],
    "gone": lambda _: (),
    "one more": lambda path: (*path, ANY_HASH),
    "swapped": lambda path: (path[1], path[0], *path[2:]),
    "flipped": lambda path: (flipped(path[0]), *path[1:]),
    "short": lambda path: (path[0][:31], *path[1:]),
    "long": lambda path: (path[0] + b"\x00", *path[1:]),
    "zeros": lambda path: (ZERO, *path[1:]),
    "empty": lambda path: (b"", *path[1:]),
    "257": lambda _: (ANY_HASH,) * 257,
    "256": lambda _: (ANY_HASH,) * 256,
    "129": lambda _: (ANY_HASH,) * 129,
    "as it is": lambda path: path,
}


@cache
def grown(forked_at: int = 0) -> Directory:
    """Seven epochs of nine users; from `forked_at` on, another history."""
    directory = Directory()
    for number in range(9):
        directory.put(f"user{number}@example.test", PROFILE)
    for epoch in range(1, EPOCHS + 1):
        if epoch == forked_at:
            directory.put(OTHER, PROFILE, BOB)
        directory.close()
    return directory


class Merkle(Surface):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._directory = grown()

    # The prefix tree, in a lookup

    def _lookup(self, user_id: str, **changes: Any) -> bytes:
        return self._directory.lookup(user_id, EPOCHS, **changes)

    def make_lookup(self, user: str = USER) -> bytes:
        return self._lookup(user)

    def make_lookup_with_path(self, how: str, user: str = USER) -> bytes:
        neighbors, _ = tree_path(self._directory.leaves(EPOCHS), index_of(user)[0])
        return self._lookup(user, neighbors=SPOILED[how](neighbors))

    def make_lookup_with_zeros_for_empty(self) -> bytes:
        """An empty sibling spelled out, in a tree that has one on somebody's path."""
        leaves = self._directory.leaves(EPOCHS)
        for number in range(1000):
            user = f"nobody{number}@example.test"
            neighbors, _ = tree_path(leaves, index_of(user)[0])
            if b"" in neighbors:
                return self._lookup(user, neighbors=tuple(neighbor or ZERO for neighbor in neighbors))
        raise AssertionError("no path has an empty sibling")

    def make_hidden(self, behind: str) -> bytes:
        """A registered user shown as absent."""
        leaves, (index, _) = self._directory.leaves(EPOCHS), index_of(USER)
        neighbors, own = tree_path(leaves, index)
        other = next((i, h) for i, h in leaves.items() if bit(i, 0) != bit(index, 0))
        sides = [tree_root({i: h for i, h in leaves.items() if bit(i, 0) == side}, 1) for side in (0, 1)]
        ways: Mapping[str, dict[str, Any]] = {
            "an empty subtree": {"existing": None},
            "its own leaf": {"existing": own},
            "a leaf off its path": {"existing": other},
            "the root as a leaf": {"existing": (sides[0], sides[1]), "neighbors": ()},
            "an empty subtree near the root": {"existing": None, "neighbors": neighbors[:1]},
        }
        return self._lookup(USER, entry=b"", profile=b"", profile_nonce=b"", **ways[behind])

    def make_invented(self) -> bytes:
        """An entry for somebody who has none, on the path that proves absence."""
        entry = make_entry(NOBODY, profile=PROFILE)
        shown = {"profile": PROFILE, "profile_nonce": nonce_of(NOBODY, 0)}
        return self._lookup(NOBODY, existing=None, entry=entry.encoded, **shown)

    def make_entry_of(self, user: str) -> bytes:
        """The entry of another user in the place of ours."""
        entry, _ = self._directory.states[-1][user]
        return self._lookup(USER, entry=entry.encoded)

    def make_older_version(self) -> bytes:
        """The entry that was current before the newest."""
        grown = Directory()
        old = grown.put(USER, PROFILE)
        grown.close()
        grown.put(USER, PROFILE)
        grown.close()
        return grown.lookup(USER, 2, entry=old.encoded, profile_nonce=nonce_of(USER, 0))

    def make_signed_tree_with_a_foreign_entry(self) -> bytes:
        """Everybody signs a tree whose leaf at our index is the entry of another index."""
        index, _ = index_of(USER)
        foreign = make_entry(OTHER, profile=PROFILE)
        colluding = Directory()
        colluding.close(root_hash=tree_root({index: foreign.hash}))
        shown: dict[str, Any] = {"profile": PROFILE, "profile_nonce": nonce_of(OTHER, 0), "existing": None}
        return colluding.lookup(USER, 1, entry=foreign.encoded, **shown)

    def make_revoked(self, with_profile: bool) -> bytes:
        revoked = Directory()
        revoked.entries[USER] = (make_revocation(USER, 5), b"")
        revoked.close()
        profile = {"profile": PROFILE, "profile_nonce": nonce_of(USER, 5)}
        shown: dict[str, Any] = profile if with_profile else {}
        return revoked.lookup(USER, 1, **shown)

    def make_lookup_with(self, field: str, **values: Any) -> bytes:
        """A good proof with one field of its tree proof or its contents replaced; text is hexadecimal."""
        message = client_pb2.LookupProof.FromString(self._lookup(values.get("user", USER)))
        data = bytes.fromhex(values["data"])
        owner = message.tree_proof if field.startswith("existing") else message
        setattr(owner, field, data)
        return encoding.canonical(message)

    def judge_lookup(self, proof: bytes) -> str:
        value = proof_encoding.decode_lookup_proof(proof)
        now_ms = value.head.head.issue_time_ms + 2000
        return status_of(verify_lookup(TRUST, value.user_id, proof, now_ms=now_ms))

    # The log of heads

    def make_consistency(self, new: int = EPOCHS, old: int = HELD, **changes: str) -> bytes:
        """From the held epoch (or `old`) to `new`; `changes` spoil the paths."""
        message = client_pb2.ConsistencyProof.FromString(self._directory.consistency(old, new))
        for field, how in changes.items():
            path: Sequence[bytes] = SPOILED[how](tuple(getattr(message, field)))
            message.ClearField(field)  # type: ignore[arg-type]  # a row names it
            getattr(message, field).extend(path)
        return encoding.canonical(message)

    def make_consistency_of_a_fork(self, at: int, new: int) -> bytes:
        """A good proof in a history that differs from `at` on."""
        return grown(at).consistency(HELD, new)

    def judge_consistency(self, proof: bytes) -> str:
        """What a client that holds head HELD says."""
        held: SignedHead = self._directory.signed(HELD)
        newer = verify_consistency(TRUST, held, proof_encoding.decode_consistency_proof(proof))
        return f"epoch {newer.head.epoch}"

    def make_inclusion(
        self,
        index: int = 2,
        size: int = 7,
        shown_index: int = -1,
        shown_size: int = -1,
        how: str = "as it is",
    ) -> tuple[bytes, int, int, Sequence[bytes], bytes]:
        """Leaf, its number and the size as shown, path, root of a log of `size` heads."""
        heads = self._directory.heads[:size]
        path: Sequence[bytes] = SPOILED[how](tuple(log_path(index, heads)))
        shown = (index if shown_index < 0 else shown_index, size if shown_size < 0 else shown_size)
        return heads[index], *shown, path, log_root(heads)

    def make_node_as_leaf(self) -> tuple[bytes, int, int, Sequence[bytes], bytes]:
        """The two hashes below an inner node, shown as a leaf of a smaller log."""
        heads = self._directory.heads[:4]
        inner = log_root(heads[:1]) + log_root(heads[1:2])
        return inner, 0, 2, [log_root(heads[2:])], log_root(heads)

    def judge_inclusion(self, shown: tuple[bytes, int, int, Sequence[bytes], bytes]) -> str:
        return "included" if history.verify_inclusion(*shown) else "not included"
