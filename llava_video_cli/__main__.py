"""The program: `llvid`, or `python -m llava_video_cli`."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line; Ctrl-C ends it at once from the first moment on."""
    # A KeyboardInterrupt in the middle of an import would be a traceback, and nothing is there yet to be kept.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from .cli.app import main as run

    run()


if __name__ == "__main__":
    main()
