"""What a person or a program sees: the ✓ lines of a verified answer, its keys, and its JSON form."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from verifier import limits
from verifier.client.client import Answer
from verifier.client.notices import Ended
from verifier.client.outcome import status_of
from verifier.lookup import Absent, LookupResult, Present
from verifier.types import AuthorizationPolicy, Realm

LOOKUP_SCHEMA, UPDATE_SCHEMA, END_SCHEMA = "e2eks.lookup/1", "e2eks.update/1", "e2eks.history-end/1"


@dataclass(frozen=True, slots=True)
class View:
    """An answer and what it was judged by: `replicas` is the policy of its epoch, `now_ms` the clock used."""

    realm: Realm
    replicas: AuthorizationPolicy
    answer: Answer
    now_ms: int

    @property
    def result(self) -> LookupResult:
        return self.answer.result

    @property
    def historic(self) -> bool:
        return self.answer.newest_epoch != self.result.head.head.epoch


def short(data: bytes) -> str:
    """Enough of a hash for people to recognise it."""
    return f"{data[:2].hex()}…{data[-1:].hex()}"


def duration(milliseconds: int) -> str:
    """A length of time for people."""
    seconds = abs(milliseconds) // 1000
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 172_800 else f"{seconds // 86_400} d"


def checks(view: View) -> Iterator[tuple[str, str]]:
    """One (what holds, how it was shown) per check, in the order of trust."""
    result = view.result
    head = result.head.head
    levels = len(result.proof.tree_proof.neighbors)
    yield "name → index", f"VRF proof by realm key {short(view.realm.vrf_public_key)}"
    found = "proven absent" if isinstance(result, Absent) else f"version {result.entry.version}"
    yield "index → entry", f"{found}, tree path of {levels} levels, root {short(head.root_hash)}"
    yield f"epoch {head.epoch}", f"signed by {_signers(view)}"
    if view.historic:
        yield (
            "historic",
            f"epoch {head.epoch} of {view.answer.newest_epoch}, in the history of the newest head",
        )
    else:
        age, limit = view.now_ms - head.issue_time_ms, view.realm.epoch_ttl_ms
        yield "fresh", f"issued {duration(age)} {'ago' if age >= 0 else 'from now'} (limit {duration(limit)})"
    yield _continuity(view)


def _continuity(view: View) -> tuple[str, str]:
    seen = view.answer.seen_epoch
    if not view.answer.address:
        return (
            "no fork",
            f"newest epoch seen here {seen}" if seen else "no other head of this realm was seen here",
        )
    if not seen:
        return "first contact", f"epoch {view.answer.newest_epoch} of this realm is remembered from now on"
    return "not rolled back", f"last seen epoch here {seen}"


def _signers(view: View) -> str:
    names = verifier_names(view)
    replicas = f"{len(view.result.signers.replicas)} of {len(view.replicas.keys)} replicas"
    return f"{replicas} + verifiers {', '.join(names)}" if names else replicas


def verifier_names(view: View) -> list[str]:
    """Names of the verifiers that were counted; the start of the key id for one the realm does not name."""
    named = {verifier.key_id: verifier.name for verifier in view.realm.verifiers}
    return sorted(named.get(key_id, key_id[:4].hex()) for key_id in view.result.signers.verifiers)


def as_text(key: bytes) -> str | None:
    """A key as text, if it is printable; what a terminal could obey is never printed."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c == "\n" for c in text) else None


def as_shown(key: bytes) -> tuple[str, str]:
    """A key and its encoding in JSON and on a terminal: itself if it is printable text, else base64."""
    text = as_text(key)
    return ("text", text) if text is not None else ("base64", base64.b64encode(key).decode("ascii"))


def key_lines(keys: Mapping[str, bytes]) -> Iterator[str]:
    """One block per application, keys of several lines indented below the name."""
    width = max(map(len, keys), default=0)
    for application, key in keys.items():
        text = as_shown(key)[1].rstrip("\n")
        if "\n" in text:
            yield f"{application}\n" + "\n".join(f"  {line}" for line in text.split("\n"))
        else:
            yield f"{application:{width}}  {text}"


def document(view: View, *, schema: str = LOOKUP_SCHEMA) -> dict[str, object]:
    """The JSON form of an answer."""
    result = view.result
    head = result.head.head
    found: dict[str, object] = {
        "schema": schema,
        "user": result.user_id,
        "status": status_of(result),
        "realm": view.realm.name,
        "epoch": head.epoch,
        "newest_epoch": view.answer.newest_epoch,
        "historic": view.historic,
        "issue_time_ms": head.issue_time_ms,
        "head_hash": head.hash.hex(),
        "index": result.proof.index.hex(),
        "tree_levels": len(result.proof.tree_proof.neighbors),
        "proof_bytes": len(result.proof.encoded),
        "replicas": sorted(key_id.hex() for key_id in result.signers.replicas),
        "verifiers": verifier_names(view),
        "address": view.answer.address,
    }
    if not isinstance(result, Absent):
        found |= {"version": result.entry.version, "entry_hash": result.entry.hash.hex()}
    if isinstance(result, Present):
        shown = {application: as_shown(key) for application, key in result.profile.keys.items()}
        found["keys"] = {application: text for application, (_, text) in shown.items()}
        found["encoding"] = {application: kind for application, (kind, _) in shown.items()}
    return found


def end_checks(ended: Ended) -> Iterator[tuple[str, str]]:
    """As `checks`, for a notice that the realm's history ends."""
    head = ended.notice.head.head
    yield "notice", f"signed by {len(ended.signed_by)} of {ended.replicas} replicas"
    yield (
        f"epoch {head.epoch}",
        f"the last one, signed by a majority of its replicas, head {short(head.hash)}",
    )
    lost = ended.seen_epoch - head.epoch
    what = f"newest epoch seen here {ended.seen_epoch}" if ended.seen_epoch else "no other head was seen here"
    yield "no fork", f"{what}: what the {lost} after the last one changed is lost" if lost > 0 else what


def end_document(realm: Realm, ended: Ended) -> dict[str, object]:
    """The JSON form of a notice that holds."""
    head = ended.notice.head.head
    return {
        "schema": END_SCHEMA,
        "realm": realm.name,
        "epoch": head.epoch,
        "head_hash": head.hash.hex(),
        "issue_time_ms": head.issue_time_ms,
        "made_ms": ended.notice.made_ms,
        "signed_by": sorted(key_id.hex() for key_id in ended.signed_by),
        "replicas": ended.replicas,
        "seen_epoch": ended.seen_epoch,
    }


def authorized_keys(key: bytes) -> Iterator[str]:
    """The lines of an ssh key that sshd may read: printable ones, without comments."""
    for line in key.decode(errors="replace").splitlines():
        if line.strip() and line.isprintable() and not line.lstrip().startswith("#"):
            yield line.strip()


# Words for what went wrong: what to do, by check, cause and kind

ADVICE = {
    "VerificationError": "Do not use this answer: the server or somebody on the way does not tell the truth.",
    "HistoryConflict": "Do not use keys from this realm. Send the evidence file to its verifiers.",
    "quorum": "Try again in a while; if it lasts, ask the operator which verifiers are down.",
    "stale": "Check this machine's clock and try again; if it lasts, ask the operator.",
    "future": "Check this machine's clock.",
    "notice": "Ask the realm's operator for the notice that all hosts have signed.",
    "rollback": "Try again in a while; a server that stays behind is broken or withholds updates.",
    "Unreachable": "Check the network and the addresses in realm.json, then try again.",
    "RATE_LIMITED": f"Wait: a name can be updated {limits.UPDATES_PER_DAY} times a day.",
    "UPDATE_PENDING": "An update of this name waits for its epoch; run the same command again shortly.",
    "VERSION_MISMATCH": "The entry is not the one this change is for: look it up, then run it again.",
    "NOT_AUTHORIZED": "The keys kept here may not change the entry: bring the right identity.",
    "REVOKED": "The entry was revoked; only a new registration can follow.",
    "PROOF_REQUIRED": "This realm admits names with a proof only: see `e2eks register --help`.",
    "PROOF_INVALID": "Check that the certificate is for this address and from an authority the realm trusts.",
    "PROOF_EXPIRED": "Check this machine's clock, then run it again for a fresh proof.",
    "PROOF_REPLAYED": "Run it again for a fresh proof.",
    "NOT_RATIFIED_IN_TIME": "Nothing is lost: run the same command again, the same update is sent.",
    "EPOCH_PENDING": "Try again in a while.",
    "NO_SUCH_EPOCH": "Ask for an epoch that the realm has reached.",
    "NOT_READY": "Try again in a while, or at another address.",
    "QUORUM_UNSATISFIABLE": "Nobody at this realm has some keys of your quorum: check the realm file.",
    "DOMAIN_NOT_SERVED": "Choose the realm that serves the domain: e2eks context list.",
}
