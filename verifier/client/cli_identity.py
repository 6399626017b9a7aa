"""Commands about the user's own signing keys: identity new, list, export, backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from verifier.client.session import Commands, Session, is_interactive, with_session

if TYPE_CHECKING:
    from verifier.client.identity import Identity

SCHEMA = "e2eks.identity-public/1"


@click.group(cls=Commands)
def identity() -> None:
    """Your own signing keys: who has them can change your entries."""


@identity.command()
@click.argument("user")
@with_session
def new(session: Session, user: str) -> None:
    """Make the first signing key for USER. `e2eks register` does so, too, if there is none."""
    import secrets

    made = session.identities.make(user, secrets.token_bytes)
    session.tick("new key", str(session.identities.path(user)))
    session.say(" keep a copy somewhere else: e2eks identity backup, without it a lost key is a lost entry")
    session.write(public_part(made), [line_of(made)])


@identity.command("list")
@with_session
def list_identities(session: Session) -> None:
    """The user ids with signing keys here."""
    found = session.identities.all()
    session.write_all(
        [public_part(known) for known in found],
        schema="e2eks.identities/1",
        table=[line_of(k) for k in found],
    )


@identity.command()
@click.argument("user")
@with_session
def export(session: Session, user: str) -> None:
    """The public keys of USER, for another device's `register --also`."""
    found = session.identities.load(user)
    session.write(public_part(found), [signer.public_key.hex() for signer in found.signers])


@identity.command()
@click.argument("user")
@click.option("--yes", is_flag=True, help="Print the secret keys without asking.")
@with_session
def backup(session: Session, user: str, yes: bool) -> None:
    """Print the SECRET keys of USER: the identity's file, which restores it where it came from."""
    saved = session.identities.backup(user)
    if not yes:
        if not is_interactive():
            raise click.UsageError("this prints secret keys; say --yes if that is what you want")
        click.confirm("This prints secret keys. Go on?", abort=True, err=True)
    click.echo(saved, nl=False)
    session.say(f" to restore it, put it back at {session.identities.path(user)} with: chmod 600")


def public_part(known: Identity) -> dict[str, object]:
    """What may be shown of an identity."""
    from verifier.crypto.hashing import key_id

    keys = [{"public_key": s.public_key.hex(), "key_id": key_id(s.public_key).hex()} for s in known.signers]
    return {"schema": SCHEMA, "user": known.user_id, "keys": keys, "pending": len(known.pending)}


def line_of(known: Identity) -> str:
    """An identity on one line: whose it is and its newest key."""
    return f"{known.user_id}  {known.newest.public_key.hex()}"
