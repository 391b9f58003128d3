"""What a real card does, in at most six minutes: a JSON line for each result, as soon as it is there.

    python tests/benchmarks/gpu.py | tee gpu.jsonl                  # on a GPU: 7B with random weights, no network
    python tests/benchmarks/gpu.py --parts kernels,speed            # some parts alone
    python tests/benchmarks/gpu.py --size tiny --seconds 1800       # does it work? Also without a GPU

Each part runs in a process of its own, with a limit of its own, the most wanted first: what a part has printed counts,
even if it is killed. The lines have `part`, `what` and the figures, with units in their names; a part ends with a line
that has its `part_seconds`, and `failed` if it failed.

| part | what it decides |
|---|---|
| kernels | which kernel SDPA takes for our shapes, and what the first call costs in a thread: whether cuDNN stays off |
| parity | answers in float32 are the CPU's; no module gives a NaN, in a padded batch either |
| speed | tokens/s, captured and stepping, cuDNN off and on; the first token by stage: whether captured steps stay |
| generate | the same by transformers' `generate`: plain, and with its static cache, compiled |
| caption | 256 clips through `llvid caption`: videos/s, and how busy the GPU is |
| server | 16 clients of `llvid serve`: answers/s, waits |
| precisions | 4 and 8 bits: tokens/s, and the peak of memory over its estimate |
| memory | the bound where too little is free: all answers come |
| stored | loading what is stored in 4 bits, over quantizing while loading |
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

# The limit of each part in seconds on an H100, the most wanted part first.
PARTS = {
    "kernels": 40, "parity": 50, "speed": 90, "generate": 80, "caption": 60, "server": 50, "precisions": 60,
    "memory": 40, "stored": 60,
}  # fmt: skip
SECONDS = 355.0


def main() -> None:
    """Run the parts one after the other, and hand their lines on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7B", help="of the random weights")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, in their order")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of them; each limit grows along")
    parser.add_argument("--clips", type=int, default=256, help="that are captioned")
    parser.add_argument("--part", choices=PARTS, help="one part in this process, for this script")
    options = parser.parse_args()
    if options.part:
        sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
        import gpu_parts

        gpu_parts.run(options.part, options.size, options.clips)
        return
    names = options.parts.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    until = time.monotonic() + options.seconds
    failed = [name for name in PARTS if name in names and not run_part(name, options, until)]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


def run_part(name: str, options: argparse.Namespace, until: float) -> bool:
    """Run a part in a process of its own, and print its lines as they come; return whether it went well."""
    began = time.monotonic()
    limit = min(PARTS[name] * max(1.0, options.seconds / SECONDS), until - began)
    if limit < 1:
        print(json.dumps({"part": name, "failed": "no time is left"}), flush=True)
        return False
    command = [sys.executable, __file__, "--part", name, "--size", options.size, "--clips", str(options.clips)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    timer = threading.Timer(limit, os.killpg, (process.pid, 9))  # with all that it started
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
    code = process.wait()
    timer.cancel()
    last = {"part": name, "part_seconds": round(time.monotonic() - began, 1)}
    if code:
        last["failed"] = f"killed after {limit:.0f} s" if code == -9 else f"exit code {code}, see stderr"
    print(json.dumps(last), flush=True)
    return code == 0


if __name__ == "__main__":
    main()
