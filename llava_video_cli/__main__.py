"""The program: `llvid`, or `python -m llava_video_cli`. What belongs to the process: its signals, streams and exit."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from .system.background import LOADING
from .system.files import NO_HOME, remove_temporary


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM end it at once from the first moment on."""
    # A KeyboardInterrupt in the middle of an import would be a traceback, and there is nothing yet to clean up.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _leave)
    if sys.stderr is None:  # closed by the caller, who wants only the answer
        from pathlib import Path

        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - huggingface_hub fails over it, too
        os.environ["HOME"] = NO_HOME
    from .cli import console
    from .cli.app import EXIT_NO_ANSWER, EXIT_PIPE, run

    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, _interrupt)
    if sys.stdout is None:
        console.error("can't write the answer: stdout is closed")
        sys.exit(EXIT_NO_ANSWER if "--exit-code" in sys.argv else 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = run(sys.argv[1:])
    except _Terminated:
        code = 128 + signal.SIGTERM
    try:
        sys.stdout.flush()
    except OSError:
        code = code or EXIT_PIPE
        # The rest of the buffer can't be written either; Python would report that once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # Weights may still be loading, or a step running: nobody waits for them any more. And torch takes a second to end.
    # And Ctrl-C while a string is executed, as dataclasses do it, would end Python by the signal, though it was caught.
    if (
        code > 128
        or "torch" in sys.modules
        or any(thread.name.startswith("llvid-") for thread in threading.enumerate())
    ):
        sys.stderr.flush()
        remove_temporary()
        os._exit(code)
    sys.exit(code)


class _Terminated(BaseException):
    """SIGTERM came."""


def _interrupt(kind: int, _: object) -> None:
    """Exit at once while a model loads; else raise an exception, so that what has begun is cleaned up.

    An exception in the middle of an import can be lost, or leave the import lock taken, and then the loading
    thread waits for ever (seen in CPython 3.11); at this point nothing has been written.
    """
    if any(thread.name == LOADING for thread in threading.enumerate()):
        _leave(kind)
    raise KeyboardInterrupt if kind == signal.SIGINT else _Terminated


def _leave(kind: int, *_: object) -> NoReturn:
    line = b"interrupted\n" if kind == signal.SIGINT else b""
    with suppress(OSError):  # nobody reads it
        if os.isatty(2):
            line = b"\r\x1b[K\x1b[?25h" + line  # the spinner's line, and the cursor that it hid
        stderr = os.dup(2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the spinner's thread, which draws until the end
        os.write(stderr, line)
    remove_temporary()
    os._exit(128 + kind)


if __name__ == "__main__":
    main()
