"""The command that has one's own name and keys forgotten: erase."""

from __future__ import annotations

import click

from verifier.client.session import Command, Session, is_interactive, with_session

ERASE_SCHEMA = "e2eks.erase/1"


@click.command(cls=Command)
@click.argument("user")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_session
def erase(session: Session, user: str, yes: bool) -> None:
    """Have the servers forget the name and the keys of USER, in all epochs.

    The entry stays, and with it all that is public: an index, hashes and signing keys that name nobody.
    Proofs of it go on to verify; a lookup then says "erased" (exit 9). `update` publishes keys again, and
    `revoke` ends the entry. Copies that others saved are beyond reach, as are the operator's backups until
    they expire.

    \b
    e2eks erase me@example.org
    e2eks erase me@example.org --yes
    """
    from verifier.client.client import now_ms
    from verifier.client.outcome import status_of

    identity = session.identities.load(user)
    client = session.client(updates=True)
    if not yes and is_interactive():
        click.confirm("Nobody can bring the erased keys back. Go on?", abort=True, err=True)
    client.erase(user, identity.signers)
    session.identities.store(identity.with_pending(client.realm.hash, None))
    answer = client.ask(user)
    document = session.show(client, answer, now_ms=now_ms(), schema=ERASE_SCHEMA)
    status = status_of(answer.result)
    session.tick("erased", "name and keys, in every epoch")
    session.write(document, [f"{status} in epoch {answer.result.head.head.epoch}"])
