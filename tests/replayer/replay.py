"""The naive replayer: payloads in by `replay`; `digest` after each, and `heads`, all heads as bytes, out.

Imports nothing of verifier/ or keyserver/: rules that exist once are otherwise wrong once, everywhere."""

from hashlib import sha256

from e2eks.v1 import command_pb2, state_pb2, types_pb2, verification_pb2
from google.protobuf.message import DecodeError, Message
from nacl.bindings import crypto_core_ed25519_add
from nacl.exceptions import CryptoError

from replayer import verdicts as v
from replayer.primitives import (
    Refused,
    encoded,
    history_root,
    parse,
    require,
    signed_by,
    tagged,
    tree_root,
    u64,
)


class Replayer:
    def __init__(self, realm: types_pb2.RealmConfig, min_interval_ms: int) -> None:
        genesis, suite = encoded(realm.genesis_policy), realm.suite.to_bytes(4, "big")
        self.hash = tagged("e2eks/1/realm", realm.realm.encode(), suite, realm.vrf_public_key, genesis)
        self.realm, self.base = realm.realm, self.hash
        self.laws = [self.keys_of(realm.genesis_policy, 64)]  # P(1), P(2) and so on: all are majorities
        self.tables: dict[int, dict[bytes, bytes | None]] = {letter: {} for letter in b"scouwhrvliqtkeap"}
        self.state = state_pb2.MachineState(head_hash=self.hash, policy=realm.genesis_policy)
        self.state.min_epoch_interval_ms = min_interval_ms
        self.get = lambda key: self.tables[key[0]].get(key)
        self.index, self.digest, self.heads, self.writes = 0, bytes(32), [], {}

    def candidates(self, expr, depth: int = 4) -> list[bytes]:
        require(depth > 0 and len(expr.candidates) <= 64 and len(expr.subexpressions) <= 64, v.TOO_LARGE)
        require(1 <= expr.threshold <= len(expr.candidates) + len(expr.subexpressions))
        require({len(candidate) for candidate in expr.candidates} <= {32})
        return list(expr.candidates) + [c for s in expr.subexpressions for c in self.candidates(s, depth - 1)]

    def satisfied(self, expr, signers) -> bool:
        inner = sum(self.satisfied(sub, signers) for sub in expr.subexpressions)
        return inner + sum(c in signers for c in expr.candidates) >= expr.threshold

    def keys_of(self, policy, most: int = 16) -> dict[bytes, bytes]:
        require(len(policy.public_keys) <= most, v.TOO_LARGE)
        keys = {tagged("e2eks/1/key", b"\x01", key.ed25519): key.ed25519 for key in policy.public_keys}
        require(all(len(key) == 32 for key in keys.values()) and len(keys) == len(policy.public_keys))
        named = self.candidates(policy.quorum)
        require(len(named) <= 64, v.TOO_LARGE)
        require(len(set(named)) == len(named) and set(named) <= set(keys))
        return keys

    def check_signatures(self, signatures, most: int) -> None:
        require(len(signatures) <= most, v.TOO_LARGE)
        lengths = {(len(made.key_id), len(made.signature)) for made in signatures}
        require(lengths <= {(32, 64)} and len({made.key_id for made in signatures}) == len(signatures))

    def put(self, key: bytes, value: bytes | None) -> None:
        self.writes[key] = self.tables[key[0]][key] = value

    def rows(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        live = [at for at, row in self.tables[prefix[0]].items() if row is not None]
        return [(at, self.get(at)) for at in sorted(live) if at.startswith(prefix)]

    def replay(self, payload: bytes) -> bytes:
        self.writes, public, written = {}, payload, b""
        try:
            outer = parse(command_pb2.LogEntry, payload, 1 << 20)
            require(outer.format == 1)
            del outer.private_parts[:]
            public = encoded(outer)
            envelope = parse(command_pb2.Envelope, outer.envelope, 1 << 20)
            kinds = [command.WhichOneof("command") for command in envelope.commands]
            require((len(envelope.replica), len(outer.signature)) == (32, 64) and 1 <= len(kinds) <= 1024)
            require(envelope.rules == 1, v.WRONG_RULES)
            signing = all(
                (len(c.sign_head.head_hash), len(c.sign_head.signature)) == (32, 64)
                for c in envelope.commands
            )
            leaving = self.laws[-2] if signing and self.state.signed_epoch < self.state.epoch else {}
            replicas = {**leaving, **self.laws[-1]}
            require(envelope.replica in replicas, v.UNKNOWN_REPLICA)
            message = tagged("e2eks/1/log-entry", self.hash, outer.envelope)
            require(signed_by(replicas[envelope.replica], message, outer.signature), v.BAD_SIGNATURE)
            require("delimiter" not in kinds or len(kinds) == 1, v.NOT_ALONE)
            self.replica, time = envelope.replica, u64(envelope.time_ms)
            if self.replica in self.laws[-1]:
                self.raise_clock(self.replica, time)
            times = [self.get(b"t" + replica) or bytes(8) for replica in self.laws[-1]]
            self.now = int.from_bytes(sorted(times, reverse=True)[len(times) // 2], "big")
            verdicts = bytes(self.command(command) for command in envelope.commands)
            self.put(b"s", encoded(self.state))
        except (Refused, DecodeError) as refused:
            verdicts = bytes((255, max([v.BAD_ENVELOPE, *(c for c in refused.args if isinstance(c, int))])))
        for key, value in sorted(self.writes.items()):
            written += b"\0" + key if value is None else b"\1" + len(key).to_bytes(4, "big") + key + value
        self.index, hashes = self.index + 1, (sha256(public).digest(), verdicts, sha256(written).digest())
        self.digest = tagged("e2eks/1/state", self.digest, u64(self.index), *hashes)
        return verdicts

    def raise_clock(self, replica: bytes, time: bytes) -> None:
        if time > (self.get(b"t" + replica) or b""):
            self.put(b"t" + replica, time)

    def command(self, wire) -> int:  # every handler checks all it has to BEFORE it changes anything
        kind = wire.WhichOneof("command")
        try:
            require(kind is not None, v.UNKNOWN_COMMAND)
            return (kind != "tick" and getattr(self, kind)(getattr(wire, kind))) or 0
        except (Refused, CryptoError, DecodeError) as refused:
            return refused.args[0] if isinstance(refused, Refused) else v.MALFORMED

    def submit_update(self, command) -> None:
        self.check_signatures(command.endorsements, 64)
        self.check_signatures(command.update.signatures, 32)
        update, new = command.update, parse(types_pb2.Entry, command.update.entry, 4096)
        if new.HasField("update_policy"):
            self.keys_of(new.update_policy)
        expected = (0, 0) if new.revocation else (32, 32 if new.version else 0)
        require((len(new.profile_commitment), len(new.previous_entry_hash)) == expected)
        require(len(new.index) == 32 and (new.revocation or new.HasField("update_policy")))
        require(len(command.private_hash) in (0, 32) and len(command.proof_id) in (0, 32))
        row, state = self.get(b"c" + new.index), self.state
        old_row = state_pb2.EntryRow.FromString(row or b"")
        old = types_pb2.Entry.FromString(old_row.update.entry) if row else None
        if update.entry == old_row.update.entry:
            return
        require(self.get(b"u" + new.index) is None, v.UPDATE_PENDING)
        registration = old is None or old.revocation
        revoked, hashed = registration and row, tagged("e2eks/1/entry", old_row.update.entry)
        expected = (0, b"") if old is None else (old.version + 1, hashed)
        lawful = not new.revocation and (new.version, new.previous_entry_hash) == expected
        if new.revocation and row:
            lawful = not revoked and new.version > old.version
        require(lawful, v.REVOKED if revoked else v.VERSION_MISMATCH)
        policies = [] if registration else [old.update_policy]
        policies += [] if new.revocation else [new.update_policy]
        keys = {key_id: key for policy in policies for key_id, key in self.keys_of(policy).items()}
        require(all(s.key_id in keys for s in update.signatures), v.NOT_AUTHORIZED)
        message = tagged("e2eks/1/update", self.hash, update.entry)
        valid = [s.key_id for s in update.signatures if signed_by(keys[s.key_id], message, s.signature)]
        require(all(self.satisfied(policy.quorum, valid) for policy in policies), v.NOT_AUTHORIZED)
        if registration:
            self.check_admission(command, new.index)
        quota, day = state_pb2.QuotaRow.FromString(self.get(b"q" + new.index) or b""), self.now // 86_400_000
        used = quota.updates if quota.day >= day else 0
        require(used < 20, v.RATE_LIMITED)
        self.put(b"q" + new.index, encoded(state_pb2.QuotaRow(day=max(day, quota.day), updates=used + 1)))
        if registration:
            self.put(b"i" + command.proof_id, u64(state.epoch + 1))
        if row:
            self.put(b"o" + new.index + u64(old_row.epoch), row)
        self.put(b"c" + new.index, encoded(state_pb2.EntryRow(epoch=state.epoch + 1, update=update)))
        self.put(b"u" + new.index, tagged("e2eks/1/entry", update.entry))
        state.pending_updates += 1
        if state.signed_epoch == state.epoch:
            self.to_verifiers(update=update)
        else:
            state.parked_updates += 1
            self.put(b"w" + u64(state.parked_updates), encoded(update))

    def check_admission(self, command, index: bytes) -> None:
        require(bool(command.endorsements) and bool(command.proof_id), v.PROOF_REQUIRED)
        hashed = tagged("e2eks/1/entry", command.update.entry)
        what, valid = (command.private_hash, index, hashed, command.proof_id), []
        for made in command.endorsements:
            message = tagged("e2eks/1/endorse", self.hash, *what, u64(made.not_after_ms))
            if signed_by(self.laws[-1].get(made.key_id, bytes(32)), message, made.signature):
                valid.append(made.not_after_ms)
        tolerated = (len(self.laws[-1]) - 1) // 2
        require(len(valid) > tolerated, v.PROOF_INVALID)
        require(sum(until >= self.now for until in valid) > tolerated, v.PROOF_EXPIRED)
        require(self.get(b"i" + command.proof_id) is None, v.PROOF_REPLAYED)

    def delimiter(self, command) -> None:
        state, time = self.state, command.time_ms
        require(command.epoch == state.epoch + 1, v.WRONG_EPOCH)
        require(state.signed_epoch == state.epoch, v.EPOCH_PENDING)
        require(time >= state.issue_time_ms + max(1, state.min_epoch_interval_ms), v.EARLY)
        require(abs(time - self.now) <= 10_000, v.DRIFT)
        entries = [state_pb2.EntryRow.FromString(row).update.entry for _, row in self.rows(b"c")]
        leaves = [(types_pb2.Entry.FromString(e).index, tagged("e2eks/1/entry", e)) for e in entries]
        head = types_pb2.EpochHead(realm=self.realm, epoch=command.epoch, realm_hash=self.hash, rules=1)
        head.root_hash, head.previous_head_hash = tree_root(leaves), state.head_hash
        head.history_root, head.provenance_root = history_root(self.heads), bytes(32)
        head.issue_time_ms, head.state_digest = time, self.digest
        if state.HasField("next_policy"):
            head.next_epoch_policy.CopyFrom(state.next_policy)
        pending, before = self.rows(b"u"), self.get(b"h" + u64(state.epoch))
        row = state_pb2.HeadRow.FromString(before or b"")  # without updates the tree keeps its version
        row.head, row.log_index = encoded(head), self.index + 1
        row.root_version = command.epoch if pending else row.root_version
        for key, _ in pending:
            self.put(key, None)
        self.put(b"h" + u64(command.epoch), encoded(row))
        self.heads.append(row.head)
        state.epoch, state.issue_time_ms, state.pending_updates = command.epoch, time, 0
        state.head_hash = tagged("e2eks/1/epoch-head", row.head)
        self.laws.append(self.laws[-1])
        if state.HasField("next_policy"):
            self.change(command.epoch)

    def change(self, epoch: int) -> None:
        self.base, policy = self.state.head_hash, self.state.next_policy
        self.put(b"p" + u64(epoch), encoded(policy))
        self.state.policy.CopyFrom(policy)
        self.laws[-1] = self.keys_of(policy, 64)
        for gone in self.laws[-2].keys() - self.laws[-1]:
            self.put(b"t" + gone, None)
            self.put(b"a" + gone, None)
        for replica in self.laws[-1]:
            self.raise_clock(replica, u64(self.now))
        self.state.ClearField("next_policy")

    def sign_head(self, command) -> None:
        state, key = self.state, b"r" + u64(command.epoch) + self.replica
        require((len(command.head_hash), len(command.signature)) == (32, 64))
        require(1 <= command.epoch <= state.epoch, v.NO_SUCH_EPOCH)
        head, laws = self.heads[command.epoch - 1], self.laws[command.epoch - 1 : command.epoch + 1]
        keys = {**laws[0], **laws[1]}
        require(self.replica in keys, v.NOT_AUTHORIZED)
        time_ms = types_pb2.EpochHead.FromString(head).issue_time_ms
        require(command.head_hash == tagged("e2eks/1/epoch-head", head), v.HEAD_MISMATCH)
        require(self.get(key) is None, v.DUPLICATE)
        message = tagged("e2eks/1/head-replica", head, u64(time_ms))
        require(signed_by(keys[self.replica], message, command.signature), v.BAD_SIGNATURE)
        self.put(key, command.signature)
        rows = self.rows(b"r" + u64(command.epoch))
        enough = all(sum(at[9:] in law for at, _ in rows) > len(law) // 2 for law in laws)
        if command.epoch > state.signed_epoch and enough:
            made = [types_pb2.Signature(key_id=at[9:], signature=row) for at, row in rows]
            ratified = [types_pb2.Ratification(timestamp_ms=time_ms, signatures=made)]
            self.to_verifiers(epoch=types_pb2.SignedEpochHead(head=head, ratifications=ratified))
            for parked, row in self.rows(b"w"):
                self.to_verifiers(update=types_pb2.SignedEntryUpdate.FromString(row))
                self.put(parked, None)
            state.signed_epoch, state.parked_updates = state.epoch, 0

    def to_verifiers(self, **step: Message) -> None:
        self.state.verifier_log_size = size = self.state.verifier_log_size + 1
        self.put(b"l" + u64(size), encoded(verification_pb2.VerifierStep(index=size, **step)))

    def add_ratification(self, command) -> None:
        made, head = command.ratification.ratifications, command.ratification.head
        counts = [len(one.signatures) for one in made]
        require(max(len(made), sum(counts)) <= 64, v.TOO_LARGE)
        require(counts == [1])
        signature, time_ms = made[0].signatures[0], made[0].timestamp_ms
        self.check_signatures([signature], 1)
        said, signed = parse(types_pb2.EpochHead, head, 8192), self.state.signed_epoch
        hashes = [len(value) for _, value in said.ListFields() if isinstance(value, bytes)]
        require(said.epoch > 0 and hashes == [32] * 6)
        if said.HasField("next_epoch_policy"):
            self.keys_of(said.next_epoch_policy, 64)
        verifier = state_pb2.VerifierRow.FromString(self.get(b"k" + signature.key_id) or b"")
        require(verifier.listed, v.NOT_AUTHORIZED)
        require(said.epoch <= signed, v.EPOCH_PENDING if said.epoch == self.state.epoch else v.NO_SUCH_EPOCH)
        message = tagged("e2eks/1/head-verifier", head, u64(time_ms))
        require(signed_by(verifier.public_key.ed25519, message, signature.signature), v.BAD_SIGNATURE)
        require(head == self.heads[said.epoch - 1], v.HEAD_MISMATCH)
        key = b"v" + u64(said.epoch) + signature.key_id
        require(self.get(key) is None, v.DUPLICATE)
        self.put(key, encoded(made[0]))

    def admit_verifier(self, command) -> None:
        key = eightfold = command.public_key.ed25519
        require(len(key) == 32 and int.from_bytes(key, "little") % 2**255 < 2**255 - 19)
        for _ in range(3):
            eightfold = crypto_core_ed25519_add(eightfold, eightfold)
        require(eightfold != b"\x01" + bytes(31))
        identity = tagged("e2eks/1/key", b"\x01", key)
        coming = self.keys_of(self.state.next_policy, 64) if self.state.HasField("next_policy") else {}
        require(identity not in {**self.laws[-1], **coming}, v.KEY_IN_USE)
        rows = {at: state_pb2.VerifierRow.FromString(row) for at, row in self.rows(b"k")}
        row = rows.get(b"k" + identity, state_pb2.VerifierRow(public_key=command.public_key))
        require(self.replica not in row.approvals, v.DUPLICATE)
        require(sum(self.replica in other.approvals for other in rows.values()) < 64, v.TOO_MANY)
        approvals = sorted([*row.approvals, self.replica])
        listed = row.listed or sum(a in self.laws[-1] for a in approvals) > len(self.laws[-1]) // 2
        require(row.listed or not listed or sum(r.listed for r in rows.values()) < 64, v.TOO_MANY)
        kept = state_pb2.VerifierRow(public_key=row.public_key, approvals=approvals, listed=listed)
        self.put(b"k" + identity, encoded(kept))

    def erase(self, command) -> None:
        index, hashed, made = command.index, command.entry_hash, command.signatures
        self.check_signatures(made, 32)
        require((len(index), len(hashed)) == (32, 32))
        rows = self.rows(b"o" + index) + self.rows(b"c" + index)
        entries = [state_pb2.EntryRow.FromString(row).update.entry for _, row in rows]
        require(hashed in [tagged("e2eks/1/entry", entry) for entry in entries[-1:]], v.VERSION_MISMATCH)
        law = [e.update_policy for e in map(types_pb2.Entry.FromString, entries) if not e.revocation][-1]
        keys, message = self.keys_of(law), tagged("e2eks/1/erase", self.hash, index, hashed)
        valid = [s.key_id for s in made if signed_by(keys.get(s.key_id, bytes(32)), message, s.signature)]
        require(self.satisfied(law.quorum, valid), v.NOT_AUTHORIZED)
        self.put(b"e" + index, hashed)

    def change_replicas(self, command) -> None:
        change, made = parse(types_pb2.ReplicaSetChange, command.change, 8192), command.approvals
        self.check_signatures(made, 65)
        require(len(change.base) == 32)
        old, new, state = self.laws[-1], self.keys_of(change.policy, 64), self.state
        if state.HasField("next_policy"):
            require(False, v.DUPLICATE if state.next_policy == change.policy else v.CHANGING)
        require(change.base == self.base and self.now <= change.not_after_ms, v.OUTDATED)
        added, removed = set(new) - set(old), set(old) - set(new)
        majority = types_pb2.QuorumExpr(threshold=len(new) // 2 + 1, candidates=new)
        require(max(len(added), len(removed)) == 1 and change.policy.quorum == majority, v.UNLAWFUL)
        keys, message = {**old, **new}, tagged("e2eks/1/replica-set", self.hash, command.change)
        valid = {s.key_id for s in made if signed_by(keys.get(s.key_id, bytes(32)), message, s.signature)}
        require(len(valid & set(old)) > len(old) // 2 and added <= valid, v.NOT_AUTHORIZED)
        rows = [state_pb2.VerifierRow.FromString(self.get(b"k" + key) or b"") for key in new]
        require(not any(row.listed for row in rows), v.KEY_IN_USE)
        state.next_policy.CopyFrom(change.policy)

    def announce_rules(self, command) -> None:
        key, level = b"a" + self.replica, u64(command.rules)
        require(level > max(self.get(key) or b"", u64(1)), v.DUPLICATE)
        self.put(key, level)
