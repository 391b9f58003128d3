"""The app: its commands, and the one error boundary."""

from __future__ import annotations

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


def _version(wanted: bool) -> None:
    if wanted:
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
    try:
        code = app(arguments, prog_name="llvid", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
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
    except SystemExit as leave:  # how Typer answers a reader that went away
        if isinstance(leave.__context__, BrokenPipeError):
            return EXIT_PIPE
        raise
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
