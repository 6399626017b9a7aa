"""The command `keyserver`: what operators type. Each subcommand imports what it needs only when it runs."""
