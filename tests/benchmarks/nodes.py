"""A cluster of three nodes on this machine, one of which is stopped while `llvid caption --ray auto` runs on it.

    python tests/benchmarks/nodes.py [--clips 300] [--videos FOLDER] [--rounds 3]

Every clip has to stand in the output once, and the records, their times aside, have to be those of a run without Ray.
The last line is one JSON document.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from kill import command, make, records
from kill_cluster import done
from ray.cluster_utils import Cluster

STORE_BYTES = 200 * 2**20


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--videos", type=Path, help="a folder whose videos are captioned too")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        make(folder, options.clips)
        for video in sorted(options.videos.iterdir()) if options.videos else ():
            (folder / video.name).symlink_to(video.resolve())
        undisturbed = Path(name) / "undisturbed.jsonl"
        subprocess.run(command(folder, undisturbed), check=False)
        total, rounds = done(undisturbed), []
        for number in range(options.rounds):
            out = Path(name) / f"{number}.jsonl"
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
            others = [cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES) for _ in range(2)]
            try:
                environment = os.environ | {"RAY_ADDRESS": cluster.address}
                flags = ["--ray", "auto", "--gpus", "2", "--readers", "2", "--batch-size", "8"]
                process = subprocess.Popen([*command(folder, out)[:-1], *flags], env=environment)
                while process.poll() is None and done(out) < total * (number + 1) // (options.rounds + 2):
                    time.sleep(0.01)
                at = done(out)
                cluster.remove_node(others[number % 2], allow_graceful=False)
                code = process.wait()
            finally:
                cluster.shutdown()
            same = records(out) == records(undisturbed)
            failures = out.with_name(f"{number}.errors.jsonl")
            lines = failures.read_text().splitlines() if failures.exists() else []
            rounds.append({"node_lost_at": at, "records": done(out), "the_same": same, "exit_code": code})
            print(rounds[-1], [json.loads(line)["error"] for line in lines], flush=True)
    print(json.dumps({"videos": total, "rounds": rounds}))


if __name__ == "__main__":
    main()
