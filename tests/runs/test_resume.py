"""A folder run that an older version began goes on: what stands in its file is done, and stays as it is.

`written_by_62cb6f9/` holds what commit 62cb6f9 wrote. Made with a checkout of that commit:

    PYTHONPATH=CHECKOUT python tests/runs/test_resume.py tests/runs/written_by_62cb6f9

A new version of that folder would prove nothing: add one beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from terminal import scene

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_clip
from llava_video_cli.runs.formats import notes_list

OLD = Path(__file__).parent / "written_by_62cb6f9"
RUNS = {
    "captions.jsonl": ("caption", "clips"),
    "captions.csv": ("caption", "clips"),
    "captions.parquet": ("caption", "clips"),
    "windows.jsonl": (
        "caption", "clips", "--every", "1", "--sidecar", "srt", "--frames", "4", "--timestamps", "--system",
        "Be brief.", "--temperature", "0.7",
    ),
    "answers.jsonl": ("batch", "requests.jsonl"),
}  # fmt: skip
REQUESTS = (
    {"id": "plain", "video": "clips/a.mp4", "question": "What shape is it?"},
    {"video": "clips/a.mp4", "question": "Which way does it move?", "fps": 2, "start": "0:01", "sampling": "endpoints"},
    {"id": "two", "media": ["clips/a.mp4", "clips/b.mp4"], "question": "What happens?", "timestamps": True, "seed": 3},
    {
        "id": "talk", "max_new_tokens": 8, "temperature": 0.5, "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "video", "video": "clips/b.mp4"}, {"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": "It moves."},
            {"role": "user", "content": "What shape is it?"},
        ],
    },
)  # fmt: skip
ONE_MORE = {"id": "more", "video": "clips/c.mp4", "question": "What shape is it?"}
_CLIP_BYTES = 32768


def place(name: str, **changes: str) -> None:
    """Write a clip whose size and time, which are part of a key, are the same whatever wrote it."""
    path = Path("clips", f"{name}.mp4")
    path.parent.mkdir(exist_ok=True)
    write_clip(path, scene(**changes))
    left = _CLIP_BYTES - path.stat().st_size
    with path.open("ab") as file:
        file.write(struct.pack(">I4s", left, b"free").ljust(left, b"\0"))
    os.utime(path, (1_700_000_000, 1_700_000_000))


def begin() -> None:
    """Write what the runs of the old version went through into the current folder."""
    place("a")
    place("b", shape="square", direction="left")
    Path("requests.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in REQUESTS))


def go(name: str) -> int:
    return run([*RUNS[name], "-o", name, "-m", "demo"])


def contents() -> dict[str, Any]:
    """What stands in each file: bytes, or a table's rows, as each run makes that file anew."""
    return {str(path): table(path) or path.read_bytes() for path in Path().rglob("*.*") if path.suffix != ".mp4"}


def table(path: Path) -> list[dict[str, Any]]:
    if path.suffix != ".parquet" or not find_spec("pyarrow"):
        return []
    from pyarrow import parquet

    return [row | {"notes": notes_list(row["notes"])} for row in parquet.read_table(path).to_pylist()]


@pytest.mark.skipif(os.name == "nt", reason="a key holds the path as the system writes it")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_an_older_version_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    begin()
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    old = contents()
    lines = f"{name}.jsonl" if name.endswith(".parquet") else name
    done, verb = (len(REQUESTS), "answered") if name == "answers.jsonl" else (2, "captioned")

    assert go(name) == 0
    assert capsys.readouterr() == ("", f"0 {verb}, {done} done before\n")
    assert contents() == old

    place("c", shape="triangle")
    with Path("requests.jsonl").open("a") as file:
        file.write(f"{json.dumps(ONE_MORE)}\n")
    old["requests.jsonl"] = Path("requests.jsonl").read_bytes()
    assert go(name) == 0
    assert capsys.readouterr() == ("", f"1 {verb}, {done} done before\n")
    new = contents()
    kept, added = new[lines][: len(old[lines])], new[lines][len(old[lines]) :]
    assert kept == old[lines]
    assert added.count(b"\n") == 1 and b"clips/c.mp4" in added
    assert {path: new[path] for path in old if path not in (lines, name)} == {
        path: content for path, content in old.items() if path not in (lines, name)
    }, "nothing else has changed"
    if name.endswith(".parquet"):
        assert new[name][:-1] == old[name] and new[name][-1]["file"] == "clips/c.mp4"


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    begin()
    for each in RUNS:
        assert go(each) == 0
    for clip in (*Path("clips").glob("*.mp4"), Path("requests.jsonl")):
        clip.unlink()
