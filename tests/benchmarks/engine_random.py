"""Thousands of requests that come and go at random: `python tests/benchmarks/engine_random.py CASES [FIRST_SEED]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoints import make_checkpoint
from random_requests import OPTIONS, Reference, opened, run_cases
from scenes import checkpoint


def main(cases: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        layouts = {name: make_checkpoint(Path(temporary) / name, name) for name in ("vicuna", "mistral", "yi")}
        references = {name: Reference(checkpoint(name, layouts)) for name in ("demo", *layouts)}
        checked = near = 0
        while checked < cases:
            for name, one in references.items():
                for options in OPTIONS.values():
                    more, nearly = run_cases(opened(checkpoint(name, layouts), **options()), one, 100, seed)
                    checked, near, seed = checked + more, near + nearly, seed + 1
                    print(f"{checked} checked, {near} differ at near ties; {name}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
