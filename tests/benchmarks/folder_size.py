"""What does not grow with the number of videos: memory, and the time to find out that all is done.

    python tests/benchmarks/folder_size.py memory [--counts 200 5000]
    python tests/benchmarks/folder_size.py skip [--entries 100000]

`memory`: the peak of `llvid caption` as a process, over as many small clips. `skip`: seconds of `llvid caption` as a
process where every entry of a folder is done. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from terminal import scene

from llava_video_cli import load_preset
from llava_video_cli.demo.world import write_clip
from llava_video_cli.runs.caption import Task
from llava_video_cli.runs.formats import JsonLines
from llava_video_cli.video.files import Found, find


def memory(counts: list[int]) -> dict[str, Any]:
    """MiB at the peak for each number of videos; 40 different clips under many names."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        originals = [Path(name) / f"original{number}.mp4" for number in range(40)]
        for number, path in enumerate(originals):
            write_clip(path, scene(width=640, height=360, y=0.3 + number / 100))
        for count in counts:
            folder = Path(name) / str(count)
            folder.mkdir()
            for number in range(count):
                (folder / f"{number:05d}.mp4").hardlink_to(originals[number % len(originals)])
            command = [sys.executable, "-m", "llava_video_cli", "caption", str(folder), "-m", "demo", "-q"]
            process = subprocess.Popen([*command, "-o", str(Path(name) / f"{count}.jsonl")])
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            found[count] = usage.ru_maxrss / 1024
    sizes = list(found.values())
    return {
        "peak_mib": {count: round(size, 1) for count, size in found.items()},
        "ratio": round(max(sizes) / sizes[0], 3),
    }


def skip(entries: int) -> dict[str, Any]:
    """Seconds for a folder of empty files whose records, of usual size, stand in the output."""
    task = Task(load_preset("demo"))
    rows = JsonLines()
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name) / "clips", Path(name) / "out.jsonl"
        folder.mkdir()
        for number in range(entries):
            (folder / f"{number:06d}.mp4").touch()
        with output.open("wb") as file:
            for found in find([str(folder)]):
                assert isinstance(found, Found)
                file.write(rows.encode(_values(found, task.key(f"clips/{Path(found.path).name}", found.status))))
        command = [sys.executable, "-m", "llava_video_cli", "caption", str(folder), "-m", "demo", "-o", str(output)]
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            taken.append(round(time.perf_counter() - start, 2))
            assert result.stderr == f"0 captioned, {entries} done before\n", result.stderr
        return {"entries": entries, "seconds": sorted(taken), "ledger_mib": round(output.stat().st_size / 2**20)}


def _values(found: Found, key: str) -> dict[str, Any]:
    text = "A person in a red coat walks a dog along the river. " * 6
    return {
        "video_path": found.path, "caption": text, "segments": [{"start_seconds": 0, "end_seconds": 9, "text": text}],
        "frames": {"count": 32, "times_seconds": [number / 3 for number in range(32)]}, "settings": {"x": "y" * 700},
        "key": key,
    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "skip"])
    parser.add_argument("--counts", type=int, nargs="*", default=[200, 5000])
    parser.add_argument("--entries", type=int, default=100_000)
    options = parser.parse_args()
    print(json.dumps(memory(options.counts) if options.what == "memory" else skip(options.entries)))


if __name__ == "__main__":
    main()
