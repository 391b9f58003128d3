"""Which readers give the right frames of which files: a table in Markdown, the last line one JSON document.

    ../shared/tools/make_videos.sh /tmp/videos small
    python tests/benchmarks/frames_table.py /tmp/videos ../shared/videos

Right are the frames number i * total // 8 of a sequential decode (`truth.py`), or, where the rate is not constant,
those on screen at i / 8 of the duration.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import peers
from truth import Truth

COUNT = 8
NO_VIDEO = {".md", ".txt", ".json", ".sh"}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    verdicts: dict[str, dict[str, str]] = {}
    files = [path for folder in options.folders for path in sorted(folder.iterdir()) if path.suffix not in NO_VIDEO]
    for path in files:
        print(path.name, file=sys.stderr)
        try:
            truth = Truth(str(path), [COUNT])
        except Exception as error:  # noqa: BLE001 - not a file that can be decoded in order
            print(f"  no truth: {error}", file=sys.stderr)
            continue
        if truth.pictures:
            verdicts[path.name] = {name: truth.verdict(reader, COUNT) for name, reader in peers.READERS.items()}
    names = list(peers.READERS)
    print("| file |", " | ".join(names), "|")
    print("|---|" + "---|" * len(names))
    for file, row in verdicts.items():
        print(f"| {file} |", " | ".join(row[name] for name in names), "|")
    totals = {name: Counter(row[name].split(":")[0].split(" ")[0] for row in verdicts.values()) for name in names}
    print("| **same / other / error** |", " | ".join(
        f"{totals[name]['same']} / {totals[name]['other']} / {totals[name]['error']}" for name in names
    ), "|")  # fmt: skip
    print(json.dumps({name: dict(count) for name, count in totals.items()}))


if __name__ == "__main__":
    main()
