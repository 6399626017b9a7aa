"""Commands about realms: context add, use, list."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from verifier.client.session import Commands, Session, with_session

if TYPE_CHECKING:
    from verifier.types import Realm

SCHEMA = "e2eks.context/1"


@click.group(cls=Commands)
def context() -> None:
    """The realms you trust, and which of them is asked."""


@context.command()
@click.argument("source")
@click.option("--name", help="What to call it here. Default: the realm's own name.")
@click.option("--fingerprint", metavar="E2EKS1-…", help="What the operator of the realm says it must be.")
@click.option(
    "--quorum", type=click.Path(dir_okay=False), help="Your own quorum (JSON), instead of the realm's."
)
@click.option(
    "--allow-split-view", is_flag=True, help="Accept a quorum that lets two users see different keys."
)
@with_session
def add(
    session: Session,
    source: str,
    name: str | None,
    fingerprint: str | None,
    quorum: str | None,
    allow_split_view: bool,
) -> None:
    """Trust the realm in SOURCE: a realm.json, or the address of a keyserver.

    From an address nothing is trusted but by --fingerprint, which you have from the operator by another way.

    \b
    e2eks context add realm.json
    e2eks context add ks.example.org:4625 --fingerprint E2EKS1-…
    """
    import os.path
    from pathlib import Path

    from verifier import realm as realms
    from verifier.client.contexts import Context, read_quorum, read_realm

    is_file = os.path.exists(source)  # Path.exists raises for what cannot be the name of a file
    realm = read_realm(Path(source)) if is_file else _fetched(session, source, fingerprint)
    own = read_quorum(Path(quorum)) if quorum else None
    added = Context(name or realm.name, realm, own)
    added = session.contexts.add(added, fingerprint=fingerprint, allow_split_view=allow_split_view)
    actual = realms.fingerprint(realm)
    session.tick("realm", f"{realm.name}, kept as context {added.name!r}")
    session.tick("fingerprint", actual if fingerprint else f"{actual}  ← compare it with the operator's")
    if added.quorum is not None:
        session.tick("quorum", "your own" if own else "your own, kept from before")
    if session.contexts.current() is None:
        session.say(f" choose it: e2eks context use {added.name}")
    session.write({"schema": SCHEMA, "name": added.name, "realm": realm.name, "fingerprint": actual})


def _fetched(session: Session, address: str, fingerprint: str | None) -> Realm:
    """The realm a keyserver publishes, authenticated by nothing yet."""
    from verifier import realm as realms
    from verifier.client.contexts import parse_realm
    from verifier.client.session import seconds_of
    from verifier.client.transport import DEFAULT_TIMEOUT_S, fetch_realm_json
    from verifier.errors import ConfigError

    given = session.flag("timeout")
    realm = parse_realm(fetch_realm_json(address, seconds_of(given) if given else DEFAULT_TIMEOUT_S), address)
    if fingerprint is None:
        what = f"{address} says it serves {realm.name} with the fingerprint {realms.fingerprint(realm)}"
        raise ConfigError(f"{what}; compare it with the operator's, then run it again with --fingerprint")
    return realm


@context.command()
@click.argument("name")
@with_session
def use(session: Session, name: str) -> None:
    """Ask the realm NAME from now on."""
    session.contexts.use(name)
    session.tick("context", name)


@context.command("list")
@with_session
def list_contexts(session: Session) -> None:
    """The realms you trust; * marks the one that is asked."""
    from verifier import realm as realms

    current = session.contexts.current()
    found = [session.contexts.load(name) for name in session.contexts.names()]
    documents = [
        {
            "name": known.name,
            "realm": known.realm.name,
            "current": known.name == current,
            "fingerprint": realms.fingerprint(known.realm),
            "addresses": list(known.realm.addresses),
            "own_quorum": known.quorum is not None,
        }
        for known in found
    ]
    table = [
        f"{'*' if d['current'] else ' '} {d['name']}  {d['realm']}  {d['fingerprint']}" for d in documents
    ]
    session.write_all(documents, schema="e2eks.contexts/1", table=table)
