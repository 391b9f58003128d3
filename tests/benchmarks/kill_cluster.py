"""A folder captioned on Ray with SIGKILL of a model's actor, a reader or the command itself, at random moments.

    python tests/benchmarks/kill_cluster.py [--clips 300] [--kills 10] [--seed 0] [--videos FOLDER]

Every clip has to stand in the end file once, and the records, their times aside, have to be the same bytes as those of
an undisturbed run without Ray. Only the command is run again, after it was killed itself. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from kill import command, make, records

_LAST_SECONDS = 90.0  # in which the agents of a Ray whose command was killed notice that
VICTIMS = {"actor": "MapWorker(MapBatches(ModelWorker))", "reader": "MapBatches(read)"}


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, with what they call themselves."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found: dict[int, str] = {}
    for process in parents:
        above = process
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and process != pid:
            try:
                found[process] = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
    return found


def done(path: Path) -> int:
    """How many records there are."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--videos", type=Path, help="a folder whose videos are captioned too")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        make(folder, options.clips)
        for video in sorted(options.videos.iterdir()) if options.videos else ():
            (folder / video.name).symlink_to(video.resolve())
        undisturbed, killed = Path(name) / "undisturbed.jsonl", Path(name) / "killed.jsonl"
        subprocess.run(command(folder, undisturbed), check=False)
        total = done(undisturbed)
        wanted = ["actor", "reader", "driver", *draw.choices(["actor", "reader", "driver"], k=options.kills - 3)]
        draw.shuffle(wanted)
        kills: Counter[str] = Counter()
        orphans: dict[int, str] = {}
        at: list[int] = []
        ray = ["--ray", "local", "--gpus", "2", "--readers", "2", "--batch-size", "8"]
        process = subprocess.Popen([*command(folder, killed), *ray])
        moments = sorted(draw.randrange(total * 9 // 10) for _ in wanted)
        for victim, moment in zip(wanted, moments, strict=True):
            while process.poll() is None and done(killed) < moment:
                time.sleep(0.01)
            time.sleep(0.3 * draw.random())
            while process.poll() is None and victim != "driver":
                inside = [pid for pid, title in descendants(process.pid).items() if VICTIMS[victim] in title]
                if inside:
                    os.kill(draw.choice(inside), signal.SIGKILL)
                    break
                time.sleep(0.02)
            if victim == "driver":
                below = descendants(process.pid)
                process.kill()
                process.wait()
                orphans |= below
                process = subprocess.Popen([*command(folder, killed), *ray])
            kills[victim] += 1
            at.append(done(killed))
            print(f"{victim} killed at {at[-1]} of {total}", flush=True)
        code = process.wait()
        until = time.monotonic() + _LAST_SECONDS
        while left := [title for pid, title in orphans.items() if Path(f"/proc/{pid}").exists()]:
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        failures = killed.with_name("killed.errors.jsonl")
        failed = [json.loads(line)["error"] for line in failures.read_text().splitlines()] if failures.exists() else []
        mine, theirs = records(killed), records(undisturbed)
    result = {"videos": total, "kills": dict(kills), "records_at_each": at, "exit_code": code, "failed": failed}
    result["left_behind"] = left
    print(json.dumps(result | {"records": len(mine), "the_same": mine == theirs}))


if __name__ == "__main__":
    main()
