"""The app: its commands, and the one error boundary."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Annotated

import typer

from ..errors import LlvidError
from ..system.background import LOADING
from . import console
from .lazy_commands import Commands

# What the shell reports for a program that SIGPIPE ended, as `llvid ask ... | head -c 5` does.
_EXIT_PIPE = 141
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
        from importlib.metadata import version

        console.write(f"llvid {version('llava-video-cli')}\n")
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
        return _EXIT_PIPE
    except SystemExit as leave:  # how Typer answers a reader that went away
        if isinstance(leave.__context__, BrokenPipeError):
            return _EXIT_PIPE
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


def _interrupt(*_: object) -> None:
    """Leave at once while a model loads; else raise `KeyboardInterrupt`, so that what was begun is put in order.

    An exception in the middle of an import can be lost, or leave the import lock taken, and then the loading
    thread waits for ever (seen in CPython 3.11); nothing has been written yet that would have to be kept.
    """
    if any(thread.name == LOADING for thread in threading.enumerate()):
        if sys.stderr.isatty():
            os.write(2, b"\r\x1b[K\x1b[?25h")  # the spinner's line, and the cursor that it hid
        os.write(2, b"interrupted\n")
        os._exit(_EXIT_INTERRUPTED)
    raise KeyboardInterrupt


def main() -> None:
    """Run as the program `llvid`."""
    signal.signal(signal.SIGINT, _interrupt)
    if sys.stdout is None:
        console.error("can't write the answer: stdout is closed")
        sys.exit(1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        code = code or _EXIT_PIPE
        # What is still in the buffer can't be written either; Python would complain about it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if any(thread.name.startswith("llvid-") for thread in threading.enumerate()):
        sys.stderr.flush()
        os._exit(code)  # weights are still loading, or a step is under way: nobody waits for them any more
    sys.exit(code)
