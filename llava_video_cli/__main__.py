"""The program: `llvid`, or `python -m llava_video_cli`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn


def main() -> None:
    """Run the command line; Ctrl-C ends it at once from the first moment on."""
    # A KeyboardInterrupt in the middle of an import would be a traceback, and nothing is there yet to be kept.
    signal.signal(signal.SIGINT, _interrupted)
    if sys.stderr is None:  # closed by the caller: what goes there is not wanted, the answer is
        from pathlib import Path

        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for the rest of the process
    from .cli.app import main as run

    run()


def _interrupted(*_: object) -> NoReturn:
    with suppress(OSError):  # nobody reads it
        os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
