"""`python -m llava_video_cli` is `llvid`."""

from .cli.app import main

main()
