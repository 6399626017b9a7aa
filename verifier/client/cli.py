"""The command `e2eks`, for people and scripts. Only click is imported until a command runs."""

from __future__ import annotations

import click

from verifier.client.session import Commands, flags

# The commands as `e2eks --help` lists them, so that the help needs no command's module.
COMMANDS = {
    "lookup": "Find the keys of USER, with proof.",
    "verify": "Judge a saved proof, without any server.",
    "verify-notice": "Judge a notice that a realm's history ends.",
    "register": "Publish the first keys for USER.",
    "update": "Change the keys of USER.",
    "revoke": "End the entry of USER.",
    "erase": "Have the keys of USER forgotten.",
    "identity": "Your own signing keys.",
    "context": "The realms you trust.",
    "ssh-authorized-keys": "Print the ssh keys of USER for sshd.",
}

EPILOG = """\b
Exit codes:
  0  done, proof verified            5  unreachable or timed out
  1  unexpected (a bug)              6  refused by the server
  2  usage or configuration          7  too few, stale or older ratifications
  3  a proof does not verify *       8  history conflict: fork *
  4  proven absent                   9  erased or revoked
  * evidence kept, its path printed"""


def load_commands() -> dict[str, click.Command]:
    """The commands themselves, by name."""
    from verifier.client import cli_context, cli_erase, cli_identity, cli_lookup, cli_update

    return {
        "lookup": cli_lookup.lookup,
        "verify": cli_lookup.verify,
        "verify-notice": cli_lookup.verify_notice,
        "register": cli_update.register,
        "update": cli_update.update,
        "revoke": cli_update.revoke,
        "erase": cli_erase.erase,
        "identity": cli_identity.identity,
        "context": cli_context.context,
        "ssh-authorized-keys": cli_lookup.ssh_authorized_keys,
    }


class LazyCommands(Commands):
    """The commands of the table, imported when one of them runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # same
        return load_commands().get(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # same
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyCommands,
    params=[*flags(environment=True)],
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="e2eks", prog_name="e2eks")
def main() -> None:
    """Find and publish keys in a directory that cannot lie unseen.

    Every answer is a proof, checked here, that replicas and independent verifiers of the realm have signed.

    \b
    e2eks context add realm.json --fingerprint E2EKS1-…   trust a realm
    e2eks lookup bob@example.org                          somebody's keys
    e2eks register me@example.org --key ssh=id.pub        your own
    """
