"""What `llvid ask --windows` costs on hours of video: seconds and peak memory of the whole process.

    ../shared/tools/make_videos.sh /tmp/videos all
    python tests/benchmarks/windows.py --video /tmp/videos/h264_480p_2h.mp4 [--seconds 360 60]

The demo checkpoint, one question, `--seconds` for each length of a window. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--seconds", type=float, nargs="*", default=[360, 60])
    options = parser.parse_args()
    found = {}
    for seconds in options.seconds:
        command = [sys.executable, "-m", "llava_video_cli", "ask", str(options.video), "What shape is it?"]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "-m", "demo", "-q", "--windows", str(seconds)])
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        taken = time.perf_counter() - start
        found[f"{seconds:g}"] = {"seconds": round(taken, 1), "peak_mib": round(usage.ru_maxrss / 1024)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
