"""Commands that ask or judge: lookup, verify, verify-notice, ssh-authorized-keys."""

from __future__ import annotations

import click

from verifier.client.session import Command, Session, with_session

MAX_U64_DIGITS = 20
FILE_BYTES = 8 * 1024 * 1024  # what is read of a file before its size alone shows that it is none


@click.command(cls=Command)
@click.argument("user")
@click.option("--app", metavar="APP", help="Only the key for this application.")
@click.option("--raw", is_flag=True, help="With --app: the exact bytes of the key, nothing else.")
@click.option("--epoch", type=click.IntRange(1), help="The keys as they were in this epoch.")
@click.option(
    "--save", type=click.Path(dir_okay=False), metavar="FILE", help="Keep the proof, for `e2eks verify`."
)
@with_session
def lookup(
    session: Session,
    user: str,
    app: str | None,
    raw: bool,
    epoch: int | None,
    save: str | None,
) -> None:
    """Find the keys of USER, with proof.

    \b
    e2eks lookup bob@example.org
    e2eks lookup bob@example.org --app ssh --raw
    e2eks lookup bob@example.org -o json | jq -r .keys.age
    """
    from verifier.client.client import now_ms

    if raw and app is None:
        raise click.UsageError("--raw needs --app: which key?")
    client = session.client()
    answer = client.ask(user, epoch or 0)
    if save:
        from pathlib import Path

        from verifier import files

        files.store_private(Path(save), answer.result.proof.encoded)
    document = session.show(client, answer, now_ms=now_ms())
    if save:
        session.say(f" saved {save}")
    session.finish(_print_result(session, answer.result, document, app, raw))


def _print_result(
    session: Session, result: object, document: dict[str, object], app: str | None, raw: bool
) -> int:
    """Keys on stdout, or in words why there are none; the exit code."""
    from verifier.client import show
    from verifier.client.outcome import Exit, exit_of_result, status_of
    from verifier.lookup import Absent, Erased, Present, Revoked

    if isinstance(result, Absent | Erased | Revoked):
        session.write(document)
        if session.output == "table":
            session.say(f"e2eks: proven {status_of(result)}: no keys")
        return int(exit_of_result(result))
    assert isinstance(result, Present)
    if app is None:
        session.write(document, show.key_lines(result.profile.keys))
        return int(Exit.DONE)
    key = result.profile.keys.get(app)
    if key is None:
        session.say(
            f"e2eks: the user has no key for {app!r}, but for: {', '.join(result.profile.keys) or 'nothing'}"
        )
        return int(Exit.ABSENT)
    if raw:
        click.echo(key, nl=False)
        return int(Exit.DONE)
    kind, text = show.as_shown(key)
    chosen = {**document, "keys": {app: text}, "encoding": {app: kind}}
    session.write(chosen, [text.rstrip("\n")])
    return int(Exit.DONE)


@click.command(cls=Command)
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--realm-file", type=click.Path(dir_okay=False), help="The realm.json to judge by, instead of a context."
)
@click.option(
    "--at", metavar="TIME", help="Judge as of this time: Unix milliseconds or RFC 3339. Default: now."
)
@click.option("--user", help="Whom the proof must be about. Default: whom it names.")
@with_session
def verify(session: Session, file: str, realm_file: str | None, at: str | None, user: str | None) -> None:
    """Judge a saved proof, without any server.

    The heads of verified proofs are remembered: another head of the same epoch is a fork (exit 8).

    \b
    e2eks lookup bob@example.org --save bob.bin
    e2eks verify bob.bin --realm-file realm.json --user bob@example.org
    """
    from pathlib import Path

    from verifier import files
    from verifier.client.client import now_ms
    from verifier.client.contexts import Context, read_realm

    at_ms = parse_time(at) if at else now_ms()
    context = session.context if realm_file is None else Context("", read_realm(Path(realm_file)), None)
    proof = files.read_file(Path(file), FILE_BYTES, "proof")
    client = session.client(context=context)
    answer = client.verify_saved(proof, user_id=user, at_ms=at_ms)
    session.tick("user", answer.result.user_id)
    document = session.show(client, answer, now_ms=at_ms)
    session.finish(_print_result(session, answer.result, document, None, False))


@click.command("verify-notice", cls=Command)
@click.argument("notice", type=click.Path(dir_okay=False))
@click.option(
    "--realm-file", type=click.Path(dir_okay=False), help="The realm.json to judge by, instead of a context."
)
@with_session
def verify_notice(session: Session, notice: str, realm_file: str | None) -> None:
    """Judge a NOTICE that the realm's history ends, which its operator publishes when all replicas were lost.

    Exit code 0: a majority of the replicas says so, with the keys they had. A server is asked only if the
    replicas have changed since the realm file was made, and this machine has not seen it.

    \b
    e2eks verify-notice notice.json --realm-file realm.json
    """
    from pathlib import Path

    from verifier import files
    from verifier.client import show
    from verifier.client.contexts import Context, read_realm

    context = session.context if realm_file is None else Context("", read_realm(Path(realm_file)), None)
    data = files.read_file(Path(notice), FILE_BYTES, "notice")
    ended = session.client(context=context).verify_notice(data)
    for what, how in show.end_checks(ended):
        session.tick(what, how)
    line = f"the history of {context.realm.name} ends with epoch {ended.notice.epoch}"
    session.write(show.end_document(context.realm, ended), [line])


def parse_time(text: str) -> int:
    """Unix milliseconds of a time in Unix milliseconds or RFC 3339. Raises click.UsageError."""
    from datetime import datetime

    if text.isascii() and text.isdigit() and len(text) <= MAX_U64_DIGITS:
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise click.UsageError(f"{text!r} is neither Unix milliseconds nor like 2026-01-31T12:00:00Z")
    return round(time.timestamp() * 1000)


@click.command("ssh-authorized-keys", cls=Command)
@click.argument("user")
@with_session
def ssh_authorized_keys(session: Session, user: str) -> None:
    """Print the ssh keys of USER for sshd's AuthorizedKeysCommand.

    No lines and exit 0 if the user has none; nothing at all and another exit code if that is not proven.
    """
    from verifier.client import show
    from verifier.client.outcome import Exit, exit_of_result
    from verifier.lookup import Absent, Present

    result = session.client().lookup(user)
    if isinstance(result, Present):
        for line in show.authorized_keys(result.profile.keys.get("ssh", b"")):
            click.echo(line)
    elif not isinstance(result, Absent):
        session.finish(int(exit_of_result(result)))
    session.finish(int(Exit.DONE))
