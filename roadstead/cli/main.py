"""The command group, and how errors become lines and exit codes."""

from __future__ import annotations

import sys
from importlib import import_module

import click

import roadstead
from base.errors import RoadsteadError
from roadstead.cli.common import EXIT_USAGE, exit_code

__all__ = ["main"]

# name -> (module, help); a command's module is imported when it runs, which keeps `--help` quick.
_COMMANDS = {
    "up": "Run the whole system in one process.",
    "cluster": "Run a whole cluster of processes on this machine.",
    "chat": "Chat in the terminal as a user.",
    "send": "Send one message for a user.",
    "status": "Run status nodes, and ask and resize the status cluster.",
    "access": "Run and manage access nodes.",
    "scheduler": "Run a scheduler.",
    "im": "Run a process of the message services, and see and move their shards.",
    "rollout": "Roll a version of the access nodes out, step by step.",
    "policy": "Choose the rules by which the scheduler decides.",
    "lists": "Write the lists of users that rollouts and policies name.",
    "explain": "Explain where the scheduler sends a client, and why.",
    "record": "Record what the scheduler decides.",
    "replay": "Have recorded decisions, or people's chats, happen again.",
    "history": "Check what clients saw of the message services.",
    "simulate": "Simulate a fleet under the scheduler and other ways of balancing.",
    "token": "Mint a user token, as your backend would.",
    "ca": "Make certificates for the TLS between nodes.",
    "doctor": "Check a running system and say what to do.",
    "check-config": "Check a configuration and list every fault.",
    "print-config": "Print the configuration in force, or its reference.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - see above
        if cmd_name not in _COMMANDS:
            return None
        command = import_module(f"roadstead.cli.{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - see above
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(roadstead.__version__, prog_name="roadstead")
def _cli() -> None:
    """The control plane for long connections of an instant-messaging system."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    try:
        # Outside its standalone mode click returns the code of an `Exit` instead of raising it.
        code = _cli.main(arguments, standalone_mode=False)
    except RoadsteadError as error:
        for line in str(error).splitlines():
            click.echo(f"error: {line}", err=True)
        sys.exit(exit_code(error))
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    if code:
        sys.exit(code)
