"""The app: its commands, each imported only when it runs, and the one error boundary."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import LlvidError, nearest
from ..system.files import TMPDIR_HINT
from . import console

EXIT_PIPE = 141  # what the shell reports for a program that SIGPIPE ended, as `llvid ask ... | head -c 5` does
_EXIT_INTERRUPTED = 130
# What a file system says of a path that the user named: no bug of ours.
_OF_PATHS = {
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.EIO, errno.ESTALE,
}  # fmt: skip
_NUMBERS = {"int": "a whole number", "float": "a number"}
EXIT_NO_ANSWER = 2  # with --exit-code, as `grep` has it: 1 is an answer there
ABOUT = {
    "ask": "Ask one or more questions about a video or a picture.",
    "chat": "Talk about videos and pictures.",
    "caption": "Caption videos: one, or a folder of thousands.",
    "batch": "Answer a file of requests, one JSON object per line.",
    "find": "Find where in videos something is seen.",
    "transcribe": "Write down what is said in videos, with times.",
    "frames": "Save the frames that the model would see.",
    "bench": "Measure this machine: decoding, loading, tokens/s, videos/s, memory.",
    "eval": "Score a model on a question set.",
    "report": "Make one HTML page to look through results.",
    "serve": "Serve a loaded model over HTTP with an OpenAI-compatible API.",
    "pull": "Download a checkpoint.",
    "models": "List the models on this machine, or remove some.",
    "doctor": "Show what this machine has, what a model needs, and what to do about each problem.",
    "presets": "List the presets, or show one.",
    "demo": "Write a short clip and ask the included demo checkpoint about it.",
}


def command(name: str) -> Any:
    """Import a command of `ABOUT`: in the module of its name, a function of that name, and its `HELP`."""
    from .options import takes_flags

    module = import_module(f".{name}", __package__)
    single = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    single.command(name, help=module.HELP)(takes_flags(getattr(module, name)))
    result = typer.main.get_command(single)
    result.name = name
    return result


class _Commands(TyperGroup):
    """The commands; `llvid --help` needs only their lines in `ABOUT`."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: dict[str, Any] = dict.fromkeys(ABOUT)  # mistyped names are compared with these

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(ABOUT)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        return command(cmd_name) if cmd_name in ABOUT else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(ABOUT.items()))


app = typer.Typer(
    name="llvid",
    cls=_Commands,
    help="Ask about videos and caption them on your own machine, with LLaVA-NeXT-Video or another video model.",
    epilog="Try `llvid demo` first: it needs no download. Its checkpoint knows only moving coloured shapes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@contextmanager
def failing_as(exit_code: int) -> Iterator[None]:
    """Let whatever fails in the block end the program with this exit code; signals and closed pipes keep theirs."""
    try:
        yield
    except (LlvidError, typer.Exit, typer.TyperException) as failure:
        failure.exit_code = exit_code
        raise
    except BrokenPipeError:
        raise
    except OSError as failure:
        error = _of_the_system(failure) or LlvidError(f"can't write the answer: {failure.strerror or failure}")
        error.exit_code = exit_code
        raise error from None
    except Exception as failure:  # noqa: BLE001 - a bug: Python would exit with 1, the second choice
        if isinstance(failure, ImportError) and (broken := _of_the_system(failure)) is not None:
            broken.exit_code = exit_code
            raise broken from None
        traceback.print_exception(failure)
        raise typer.Exit(exit_code) from None


def _of_the_system(failure: OSError | ImportError) -> LlvidError | None:
    """Return what to say of a failure that is the system's, or None for a bug."""
    if isinstance(failure, ImportError):
        is_library = (failure.path or "").endswith((".so", ".dylib", ".pyd"))
        hint = "memory is short, or the package that it belongs to has to be installed again"
        return LlvidError(f"{failure.path} can't be loaded: {failure}", hint) if is_library else None
    if (failure.filename, failure.strerror) == (None, os.strerror(errno.ENOENT)):  # of `os.getcwd`
        return LlvidError("the current folder is not there any more", "change to another folder")
    if failure.filename is None and failure.errno == errno.ENOENT:  # of `tempfile`, also where torch is imported
        return LlvidError(f"can't make a temporary file: {failure.strerror}", TMPDIR_HINT)
    if failure.filename is None and failure.errno is not None:
        return LlvidError(f"can't write the answer: {failure.strerror}")
    if failure.errno in _OF_PATHS:
        return LlvidError(f"{os.fsdecode(failure.filename)}: {failure.strerror}")
    return None


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


def _in_our_words(message: str) -> str:
    """Return what Typer says about a command line, as an error of ours begins and ends."""
    message = message[:1].lower() + message[1:].rstrip(".")
    return re.sub("is not a valid (int|float)( range)?$", lambda kind: f"is not {_NUMBERS[kind[1]]}", message)


def run(arguments: list[str]) -> int:
    """Run a command line; return the exit code, after a line on stderr if it failed."""
    if "_LLVID_COMPLETE" in os.environ:
        app(prog_name="llvid")  # the shell asks for completions: Typer answers and exits
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    try:
        group = typer.main.get_command(app)
        # Typer's own main turns Ctrl-C into exit code 130, which a command that handled Ctrl-C itself returns too.
        with group.make_context("llvid", arguments) as context:
            code = group.invoke(context)()
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
        if type(failure).__name__ == "NoArgsIsHelpError":  # `llvid` alone shows the help, and fails
            console.stderr.print(failure.format_message())
        else:
            message = _in_our_words(failure.format_message())
            where = getattr(getattr(failure, "ctx", None), "command_path", "llvid")
            if where == "llvid" and arguments and arguments[0] in ABOUT:  # an option without its value
                where = f"llvid {arguments[0]}"
            hint = f"`{where} --help` shows how to use it"
            if wrong := re.search("'([^']*)' is not one of (.*)", message):
                hint = nearest(wrong[1], re.findall("'(.*?)'", wrong[2])) or hint
            elif guess := re.search(r"(?:\. Did you mean | \(Possible options: )(.*?)[?)]$", message):
                message, hint = message[: guess.start()], f"did you mean {guess[1].replace(', ', ' or ')}?"
            if where == "llvid" and arguments and os.path.exists(arguments[0]):  # noqa: PTH110 - quick
                hint = f"name a command: llvid ask {shlex.join(arguments)}"
            for name in arguments:
                if name.startswith("-") and os.path.exists(name):  # noqa: PTH110
                    hint = f"for the file of that name, write {shlex.quote(f'./{name}')}"
            console.error(message, hint)
        return failure.exit_code
    except BrokenPipeError:
        return EXIT_PIPE
    except (OSError, ImportError) as failure:
        if (error := _of_the_system(failure)) is None:
            raise
        console.error(error)
        return error.exit_code
