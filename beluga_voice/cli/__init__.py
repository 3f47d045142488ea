"""The command `beluga-voice`: `main` runs it, each subcommand is a module of its own, imported when it is called.

What a user got wrong is one line on stderr and exit code 2, and so is a standard output that cannot be written; Ctrl-C
is 130; a reader that went away (`| head`) ends it quietly.
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

import click

from ..errors import BelugaVoiceError
from ..options import nearest

__all__ = ["main"]

# Where each command is, and its line in --help, told here so that --help imports none of them.
COMMANDS = {
    "talk": ("beluga_voice.cli.talk:talk", "Hold a whole conversation over a recorded caller."),
    "serve": ("beluga_voice.cli.serve:serve", "Answer calls over WebSockets, with a web page."),
    "call": ("beluga_voice.cli.call:call", "Call a server with a recording or the microphone."),
    "say": ("beluga_voice.cli.say:say", "Speak a text into a sound file."),
    "transcribe": ("beluga_voice.cli.transcribe:transcribe", "Write down what is said in a sound file."),
    "check": ("beluga_voice.cli.check:check", "Check that a provider keeps the promises of its kind."),
    "providers": ("beluga_voice.cli.providers:providers", "Show which providers are installed."),
}
USER_ERROR, INTERRUPTED = 2, 130
# A full disk, a quota, a broken disk.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
UNHEARD = logging.NullHandler()


class LazyGroup(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            close = nearest(cmd_name, COMMANDS)
            hint = f"did you mean {close!r}?" if close else f"the commands are {', '.join(COMMANDS)}"
            ctx.fail(f"no command is called {cmd_name!r}; {hint}")
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(package_name="beluga-voice", message="%(prog)s %(version)s")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Voice sessions from speech providers chosen by name."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command with `args` (those of the process by default) and return its exit code."""
    if args is None:
        # A console script lacks the current folder, from which the user's own agent may import at any time.
        sys.path.append("")
    # Commands tell in their own words what is logged; `serve` sets up logs of its own.
    logging.getLogger("beluga_voice").addHandler(UNHEARD)
    if sys.stdout is None:
        # Closed by the caller (`>&-`), who wants to see nothing.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # what somebody says has any letters, and the terminal not
    try:
        code = command.main(args=args, prog_name="beluga-voice", standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        see = f" (see: {context.command_path} --help)" if context else ""
        return _refuse(f"{error.format_message()}{see}")
    except BelugaVoiceError as error:
        return _refuse(str(error))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        # What is still in the buffer would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _refuse(f"the standard output cannot be written ({error.strerror}); write it elsewhere")
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    click.echo(f"beluga-voice: {' '.join(message.split())}", err=True)
    return USER_ERROR
