"""The app: its commands, and the one error boundary."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import LlvidError
from . import console
from .lazy_commands import Commands

EXIT_PIPE = 141  # what the shell reports for a program that SIGPIPE ended, as `llvid ask ... | head -c 5` does
_EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="llvid",
    cls=Commands,
    help="Ask about videos and caption them on your own machine, with LLaVA-NeXT-Video.",
    epilog="`llvid demo` shows it at work without a download; its checkpoint knows only moving coloured shapes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(show: bool) -> None:
    if show:
        from .. import __version__

        console.write(f"llvid {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def run(arguments: list[str]) -> int:
    """Run a command line; return the exit code, after a line on stderr if it failed."""
    if "_LLVID_COMPLETE" in os.environ:
        app(prog_name="llvid")  # the shell asks for completions: Typer answers and exits
    command = typer.main.get_command(app)
    try:
        # Typer's own main would make an exit with 130 of Ctrl-C, as a command that handled it does.
        with command.make_context("llvid", arguments) as context:
            code = command.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as leave:
        return leave.exit_code
    except LlvidError as failure:
        console.error(failure)
        return failure.exit_code
    except (typer.Abort, KeyboardInterrupt):
        console.stderr.print("interrupted")
        return _EXIT_INTERRUPTED
    except typer.TyperException as failure:
        return _usage_error(failure)
    except BrokenPipeError:
        return EXIT_PIPE
    except OSError as failure:
        if failure.filename is None and failure.errno is not None:  # the answer could not be written
            console.error(f"can't write the answer: {failure.strerror}")
            return 1
        raise


def _usage_error(failure: typer.TyperException) -> int:
    context = getattr(failure, "ctx", None)
    if type(failure).__name__ == "NoArgsIsHelpError":  # bare `llvid`: help, but still no success
        console.stderr.print(failure.format_message())
    else:
        where = context.command_path if context is not None else "llvid"
        console.error(failure.format_message().rstrip("."), f"`{where} --help` shows how it is used")
    return failure.exit_code
