"""Commands that change one's own entry: register, update, revoke.

Order of every change: the key is stored, the signed update is stored, and only then is it sent. A run that
ends before the answer is resumed by running the same command again: the very same update is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from verifier.client.session import Command, Session, is_interactive, with_session

if TYPE_CHECKING:
    from pathlib import Path

    from verifier.client.client import Answer, Client
    from verifier.client.drafts import Draft
    from verifier.client.identity import Identity
    from verifier.types import AuthorizationPolicy, Entry, SignedUpdate

F = TypeVar("F", bound=Callable[..., Any])

SECRET_MARKS = (b"PRIVATE KEY-----", b"AGE-SECRET-KEY-", b"BEGIN PGP PRIVATE KEY BLOCK")


def key_options(command: F) -> F:
    """--key and --also, which register and update share."""
    also = click.option(
        "--also",
        multiple=True,
        metavar="HEX",
        help="Public key of another device that may change the entry, too.",
    )
    key = click.option(
        "--key", "keys", multiple=True, metavar="APP=FILE", help="Publish FILE (- for stdin) for APP."
    )
    return key(also(command))


@click.command(cls=Command)
@click.argument("user")
@key_options
@click.option(
    "--proof", type=click.Choice(["client-certificate"]), help="How you show that the address is yours."
)
@click.option(
    "--cert", type=click.Path(dir_okay=False), help="With client-certificate: the chain, PEM, leaf first."
)
@click.option(
    "--cert-key", type=click.Path(dir_okay=False), help="With client-certificate: its private key, PEM."
)
@with_session
def register(
    session: Session,
    user: str,
    keys: Sequence[str],
    also: Sequence[str],
    proof: str | None,
    cert: str | None,
    cert_key: str | None,
) -> None:
    """Publish keys for USER, a name that nobody has yet; returns when they are ratified.

    Makes a signing key if there is none, and a revocation signed in advance: keep copies of both.

    \b
    e2eks register me@example.org --key ssh=~/.ssh/id_ed25519.pub --key age=age.pub
    e2eks register me@example.org --key age=age.pub --proof client-certificate --cert me.pem --cert-key me.key
    """
    import secrets

    from verifier.client import drafts

    profile = read_keys(keys)
    if not profile:
        raise click.UsageError("which keys? --key APP=FILE")
    if (proof is None) != (cert is None) or (cert is None) != (cert_key is None):
        raise click.UsageError("--proof client-certificate needs --cert and --cert-key, and they need it")
    client = session.client(updates=True)
    identity = session.identities.find(user)
    if identity is None:
        _check_served(client, user)
        identity = session.identities.make(user, secrets.token_bytes)
        session.tick("new signing key", str(session.identities.path(user)))
    policy = drafts.any_of([identity.newest.public_key, *map(public_key_of, also)])
    draft = _resumed(session, client, identity, profile) or client.draft_registration(
        user, profile, identity.signers, policy=policy
    )
    admission = _admission(client, draft, cert, cert_key) if cert and cert_key else b""
    _send(session, client, identity, draft, admission)


@click.command(cls=Command)
@click.argument("user")
@key_options
@click.option("--remove", multiple=True, metavar="APP", help="Publish no key for APP any more.")
@click.option("--rotate", is_flag=True, help="Make a new signing key; the old ones lose their power.")
@with_session
def update(
    session: Session, user: str, keys: Sequence[str], also: Sequence[str], remove: Sequence[str], rotate: bool
) -> None:
    """Change the keys of USER; other applications keep theirs. Returns when it is ratified.

    \b
    e2eks update me@example.org --key ssh=new.pub --remove age
    e2eks update me@example.org --rotate
    """
    from verifier.lookup import Present

    changes = read_keys(keys)
    if not (changes or remove or rotate or also):
        raise click.UsageError("what should change? --key APP=FILE, --remove APP, --rotate")
    identity = session.identities.load(user)
    client = session.client(updates=True)
    found = client.lookup(user)
    profile = dict(found.profile.keys) if isinstance(found, Present) else {}
    missing = [app for app in remove if app not in profile]
    if missing and not identity.pending:
        raise click.UsageError(f"there is no key for {', '.join(missing)} to remove")
    profile = {app: key for app, key in {**profile, **changes}.items() if app not in remove}
    draft = None if rotate or also else _resumed(session, client, identity, profile)
    if draft is None:
        identity, policy = _next_policy(session, identity, also, rotate)
        draft = client.draft_update(user, profile, identity.signers, policy=policy)
    _send(session, client, identity, draft, b"")


@click.command(cls=Command)
@click.argument("user")
@click.option(
    "--certificate", type=click.Path(dir_okay=False), help="A revocation signed in advance, to use."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_session
def revoke(session: Session, user: str, certificate: str | None, yes: bool) -> None:
    """End the entry of USER. Only a new registration, with a new proof of the address, can follow.

    Uses the revocation signed at registration, which needs no signing key, or else signs one.
    """
    import secrets

    from verifier.client import drafts

    client = session.client(updates=True)
    if not yes and is_interactive():
        click.confirm("This ends the entry for good. Go on?", abort=True, err=True)
    identity = session.identities.find(user)
    signed = _usable_revocation(session, client, user, certificate)
    if signed is not None:
        draft = drafts.revocation_draft(user, signed, secrets.token_bytes)
    else:
        draft = client.draft_revocation(user, session.identities.load(user).signers)
    _send(session, client, identity, draft, b"")


# The keys of an entry


def read_keys(pairs: Sequence[str]) -> dict[str, bytes]:
    """Application -> exact bytes of the file. Raises click.UsageError, ConfigError."""
    import os.path
    import sys
    from pathlib import Path

    from verifier import files, limits
    from verifier.errors import ConfigError

    keys: dict[str, bytes] = {}
    for pair in pairs:
        app, equals, name = pair.partition("=")
        if not (app and equals and name) or app in keys:
            raise click.UsageError(f"{pair!r}: write APP=FILE, each APP once")
        if name == "-":
            data = sys.stdin.buffer.read(limits.PROFILE_BYTES + 1)
        else:
            data = files.read_file(Path(os.path.expanduser(name)), limits.PROFILE_BYTES, "key")
        if any(mark in data for mark in SECRET_MARKS):
            raise ConfigError(f"{name} holds a private key; publish the public one")
        keys[app] = data
    return keys


def public_key_of(text: str) -> bytes:
    """An Ed25519 public key in hex. Raises click.UsageError."""
    from verifier.crypto.signatures import is_valid_public_key

    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if not is_valid_public_key(key):
        raise click.UsageError(f"--also: {text!r} is no public key; get it by: e2eks identity export USER")
    return key


def _check_served(client: Client, user: str) -> None:
    from verifier import realm

    realm.check_user_id(user, client.realm.domains)


def _next_policy(
    session: Session, identity: Identity, also: Sequence[str], rotate: bool
) -> tuple[Identity, AuthorizationPolicy | None]:
    """Who may change the entry from now on; None = as before. A new key is stored BEFORE it is used."""
    import secrets

    from verifier.client import drafts
    from verifier.crypto.signatures import SEED_BYTES

    others = list(map(public_key_of, also))
    if rotate:
        identity = identity.with_key(secrets.token_bytes(SEED_BYTES))
        session.identities.store(identity)
        session.tick("new signing key", str(session.identities.path(identity.user_id)))
    elif not others:
        return identity, None
    return identity, drafts.any_of([identity.newest.public_key, *others])


def _admission(client: Client, draft: Draft, cert: str, cert_key: str) -> bytes:
    from pathlib import Path

    from verifier import files, limits
    from verifier.client.admission import client_certificate_proof
    from verifier.client.client import now_ms

    chain = files.read_file(Path(cert), limits.REGISTRATION_PROOF_BYTES, "certificate")
    key = files.read_file(Path(cert_key), limits.REGISTRATION_PROOF_BYTES, "certificate's key")
    entry_hash = draft.update.entry.hash
    return client_certificate_proof(
        client.realm, draft.user_id, entry_hash, chain_pem=chain, key_pem=key, time_ms=now_ms()
    )


# Sending


def _resumed(
    session: Session, client: Client, identity: Identity, profile: Mapping[str, bytes]
) -> Draft | None:
    """The update of an earlier run that was never answered, if it still fits and says the same."""
    from verifier import encoding, update
    from verifier.errors import Refused

    draft = identity.pending.get(client.realm.hash.hex())
    if draft is None or draft.profile != encoding.encode_profile(dict(profile)):
        return None
    try:
        update.verify_update(_current(client, identity.user_id), draft.update, realm_hash=client.realm.hash)
    except Refused:
        return None
    session.say(" going on with the update of an earlier run")
    return draft


def _current(client: Client, user: str) -> Entry | None:
    from verifier.lookup import Absent

    found = client.lookup(user)
    return None if isinstance(found, Absent) else found.entry


def _send(
    session: Session, client: Client, identity: Identity | None, draft: Draft, admission: bytes
) -> None:
    """Store, send, wait, forget what is done, and prepare for the worst: the revocation in advance."""
    from verifier.client.client import now_ms
    from verifier.client.show import UPDATE_SCHEMA

    realm_hash = client.realm.hash
    if identity is not None and draft.profile:
        session.identities.store(identity.with_pending(realm_hash, draft))
    session.say(" sent; waiting for the epoch and its ratifications")
    answer = client.submit(draft, admission)
    document = session.show(client, answer, now_ms=now_ms(), schema=UPDATE_SCHEMA)
    if identity is not None:
        session.identities.store(identity.with_pending(realm_hash, None))
        if path := _prepare_revocation(session, client, identity, answer):
            document["revocation"] = str(path)
            session.tick("revocation ready", f"{path}  ← keep a copy: it ends this entry without any key")
    session.write(document, [_line_of(answer)])


def _line_of(answer: Answer) -> str:
    from verifier.client.outcome import status_of
    from verifier.lookup import Absent

    result = answer.result
    version = "" if isinstance(result, Absent) else f" version {result.entry.version}"
    return f"{status_of(result)}{version} in epoch {result.head.head.epoch}"


def _prepare_revocation(session: Session, client: Client, identity: Identity, answer: Answer) -> Path | None:
    """Sign the end of the entry now, for the day when the keys are lost; None if nobody could use it."""
    from verifier import files
    from verifier.client import drafts
    from verifier.errors import Refused
    from verifier.lookup import Present

    if not isinstance(answer.result, Present):
        return None
    try:
        signed = drafts.revocation(
            client.realm, answer.result.entry, identity.signers, ahead=drafts.REVOCATION_AHEAD
        )
    except Refused:  # a policy that needs other devices, too
        return None
    path = _revocation_path(session, client, identity.user_id)
    files.store_private(path, signed.encoded)
    return path


def _revocation_path(session: Session, client: Client, user: str) -> Path:
    from verifier.client.identity import file_name

    return session.places.revocations / f"{file_name(user)}.{client.realm.hash.hex()[:16]}.bin"


def _usable_revocation(
    session: Session, client: Client, user: str, certificate: str | None
) -> SignedUpdate | None:
    """The revocation signed in advance, if the current entry accepts it; one that was named must be good."""
    from pathlib import Path

    from verifier import encoding, files, limits, update
    from verifier.errors import Refused

    path = Path(certificate) if certificate else _revocation_path(session, client, user)
    read = files.read_file if certificate else files.find_file
    data = read(path, 4 * limits.ENTRY_BYTES, "revocation")
    if data is None:
        return None
    current = _current(client, user)
    try:
        signed = encoding.decode_update(data)
        update.verify_update(current, signed, realm_hash=client.realm.hash)
    except Refused:
        if certificate:
            raise
        return None
    return signed
