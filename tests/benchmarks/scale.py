"""What Ray costs, and how far it carries: against the run in one process, from 1 to 16 actors, and over a long list.

    python tests/benchmarks/scale.py cost [--clips 500]      # two actors on CPUs, against `llvid caption` without Ray
    python tests/benchmarks/scale.py grow [--actors 1 2 4 8 16] [--seconds 0.5]     # actors that sleep
    python tests/benchmarks/scale.py plan [--entries 100000]     # a list looked through; the command's memory

What it takes to start Ray, workers and models is not counted. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
from kill import make
from sleeper import Sleeper, open_small

from llava_video_cli import Sampling, load_preset, open_model
from llava_video_cli.cluster.pipeline import LiveProgress, list_inputs, run
from llava_video_cli.cluster.session import Cluster
from llava_video_cli.inference import open_resize
from llava_video_cli.preset import Preset
from llava_video_cli.runs.answers import run as run_here
from llava_video_cli.runs.caption import CaptionJob, Task
from llava_video_cli.runs.ledger import Ledger
from llava_video_cli.runs.record import Record, settings_values

STORE_BYTES = 200 * 2**20
_LINKS = 30_000  # to one file: file systems allow some ten thousand


def seconds_of(outcomes: Iterable[Any], out: Path) -> float:
    """How long it takes to get them and write them down."""
    began = time.monotonic()
    with Ledger(out) as ledger:
        for outcome in outcomes:
            assert isinstance(outcome, Record)
            ledger.append(outcome)
    return time.monotonic() - began


def cost(options: argparse.Namespace) -> dict[str, Any]:
    """Videos a second with and without Ray, which take turns.

    Each does as many clips once, and twice as many: what the second half takes has no start in it, nor what readers
    do while a model loads.
    """
    from folder import clips as cut_clips  # with torch

    task, model = Task(load_preset("demo")), open_model("demo")
    settings = settings_values(model, task.preset)
    opened: dict[str, Any] = {"open_model": partial(open_model, "demo"), "open_resize": partial(open_resize, "demo")}
    rates: dict[str, list[float]] = {"here": [], "ray": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        if options.videos is not None:
            paths = cut_clips(options.videos / "base.mkv", folder, options.height, 2 * options.clips)
        else:
            make(folder, 2 * options.clips)
            paths = sorted(folder.iterdir())

        def here(some: list[Path], out: Path) -> float:
            keys = [task.key(path.name, path.stat()) for path in some]
            jobs = (CaptionJob(str(p), key, task, settings, model.budget) for p, key in zip(some, keys, strict=True))
            return seconds_of(run_here(jobs, model), out)

        with Cluster("local", 2, 2, 2, memory_bytes=STORE_BYTES).connected() as session:

            def ray(some: list[Path], out: Path) -> float:
                return seconds_of(
                    run(list(map(str, some)), task, session, done=set(), output_folder=name, **opened), out
                )

            for turn in range(options.rounds):
                for kind, each in (("here", here), ("ray", ray)):
                    once, twice = (
                        each(paths[:count], Path(name) / f"{kind}{turn}-{count}.jsonl")
                        for count in (options.clips, 2 * options.clips)
                    )
                    rates[kind].append(options.clips / (twice - once))
                    print(kind, round(once, 1), "s,", round(twice, 1), "s", flush=True)
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    return {"rates": rates, "ratio": medians["ray"] / medians["here"], "clips": options.clips}


def grow(options: argparse.Namespace) -> dict[str, Any]:
    """Videos a second by the number of actors."""
    task = Task(Preset("sleeper", "", "sleeper", sampling=Sampling(frames=1)))
    rates: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        make(folder, 1)
        (one,) = folder.iterdir()
        for number in range(1, options.each * max(options.actors)):
            os.link(one, folder / f"link{number:05d}.mp4")
        paths = sorted(str(path) for path in folder.iterdir())
        for actors in options.actors:
            with Cluster("local", actors, actors, 2, memory_bytes=STORE_BYTES).connected() as session:
                outcomes = run(
                    paths[: options.each * actors], task, session, done=set(), output_folder=name,
                    batch_size=options.batch, open_model=partial(Sleeper, options.seconds), open_resize=open_small,
                )  # fmt: skip
                # the first wave is the start, and the last one, when some have nothing left, the end
                came = [time.monotonic() for _ in outcomes]
            whole = came[options.batch * actors : -options.batch * actors]  # they come in batches: a line through all
            rates[actors] = statistics.linear_regression(whole, range(len(whole))).slope
            print(actors, round(rates[actors], 2), flush=True)
    first = min(rates)
    linear = {actors: value / (rates[first] * actors / first) for actors, value in rates.items()}
    return {"seconds": options.seconds, "batch": options.batch, "rates": rates, "of_linear": linear}


def plan(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and the command's memory for lists of growing length."""
    task = Task(Preset("sleeper", "", "sleeper", sampling=Sampling(frames=1)))
    seconds, megabytes = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        make(folder, 1)
        (one,) = folder.iterdir()
        for number in range(options.entries):
            if number < _LINKS:
                os.link(one, folder / f"{number:07d}.mp4")
        with Cluster("local", 1, 1, 2, memory_bytes=STORE_BYTES).connected():
            for count in (1000, options.entries // 10, options.entries):
                listed = Path(name) / f"{count}.jsonl"
                with listed.open("w") as file:
                    for number in range(count):
                        file.write(f'{{"video_path": "clips/{number % _LINKS:07d}.mp4"}}\n')
                began, progress = time.monotonic(), LiveProgress()
                found = sum(
                    1 for _ in list_inputs([str(listed)], task, done=set(), output_folder=name, progress=progress)
                )
                assert found == count == progress.latest.to_do
                seconds[count] = time.monotonic() - began
                megabytes[count] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(count, round(seconds[count], 2), "s", round(megabytes[count]), "MiB", flush=True)
    growth = [later - earlier for earlier, later in pairwise(megabytes.values())]
    return {"seconds": seconds, "peak_mebibytes": megabytes, "growth_mebibytes": growth}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    commands: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"cost": cost, "grow": grow, "plan": plan}
    added = {name: kinds.add_parser(name) for name in commands}
    for name, each in added.items():
        each.set_defaults(run=commands[name])
    added["cost"].add_argument("--clips", type=int, default=500)
    added["cost"].add_argument("--rounds", type=int, default=3)
    added["cost"].add_argument("--videos", type=Path, help="a folder with base.mkv, of which clips are cut")
    added["cost"].add_argument("--height", type=int, default=480)
    added["grow"].add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    added["grow"].add_argument("--each", type=int, default=160, help="videos for each actor")
    added["grow"].add_argument("--batch", type=int, default=8)
    added["grow"].add_argument("--seconds", type=float, default=0.5, help="that a video takes of a GPU")
    added["plan"].add_argument("--entries", type=int, default=100_000)
    options = parser.parse_args()
    print(json.dumps(options.run(options)))


if __name__ == "__main__":
    main()
