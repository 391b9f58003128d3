"""What a run on a cluster goes through, in parts: all of it, each once, wherever a list is cut."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from llava_video_cli import MediaError
from llava_video_cli.errors import LlvidError
from llava_video_cli.runs.inputs import ListLines, Part, found_in, is_list, parts
from llava_video_cli.runs.storage import fetched, videos
from llava_video_cli.video.files import Found, find


def names(found: Iterable[Found | MediaError]) -> list[str]:
    return [each.path if isinstance(each, Found) else f"! {each}" for each in found]


def all_names(all_parts: Iterable[Part]) -> list[str]:
    return [name for part in all_parts for name in names(found_in(part))]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.txt", "deep/c.mkv", "deep/deeper/d.webm", ".hidden/e.mp4", "z/f.mov"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"x")
    return tmp_path / "tree"


@pytest.mark.parametrize("recursive", [False, True])
def test_folders_are_gone_through_as_on_one_machine(tree: Path, recursive: bool) -> None:
    paths = [str(tree), str(tree / "b.txt"), str(tree / "none")]
    got = all_names(parts(paths, recursive=recursive))
    assert sorted(got) == sorted(names(find(paths, recursive=recursive)))


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_list_can_be_cut_anywhere(tree: Path, end: str) -> None:
    lines = [json.dumps({"video_path": "a.mp4", "n": "é"}), json.dumps(str(tree / "deep/c.mkv")), ""]
    lines += [json.dumps({"file": "z/f.mov"}), '{"no": 1}', "{torn"]
    path = tree / "list.jsonl"
    path.write_bytes((end or "\n").join(lines).encode() + end.encode())
    whole = names(found_in(ListLines(str(path), 0, path.stat().st_size)))
    assert whole[:3] == [f"{tree}/a.mp4", f"{tree}/deep/c.mkv", f"{tree}/z/f.mov"]
    assert [name.split(": ", 1)[1] for name in whole[3:]] == [
        'a line without a video: {"no": 1}', "a line without a video: {torn",
    ]  # fmt: skip
    size = path.stat().st_size
    for cut in range(size + 1):
        assert all_names([ListLines(str(path), 0, cut), ListLines(str(path), cut, size)]) == whole


def test_a_long_list_is_many_parts(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text("".join(f'{{"video_path": "{number:06d}.mp4"}}\n' for number in range(20_000)))
    cut = list(parts([str(path)]))
    assert len(cut) > 2
    assert len(all_names(cut)) == 20_000
    assert all_names(cut[1:2])[0].endswith("mp4: no such file or folder")


def test_a_parquet_list(tree: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tree / "list.parquet"
    parquet.write_table(pyarrow.table({"n": [1, 2, 3], "video": ["a.mp4", "z/f.mov", None]}), path, row_group_size=2)
    assert is_list(str(path)) and len(list(parts([str(path)]))) == 2
    assert all_names(parts([str(path)])) == [
        f"{tree}/a.mp4", f"{tree}/z/f.mov", f"! {path}: a row without a video",
    ]  # fmt: skip
    parquet.write_table(pyarrow.table({"n": [1]}), path)
    with pytest.raises(MediaError, match="no column with the videos"):
        all_names(parts([str(path)]))
    path.write_bytes(b"no")
    with pytest.raises(MediaError, match="not a Parquet file"):
        list(parts([str(path)]))


def test_what_lies_behind_an_address(tree: Path, clip: Path) -> None:
    address = f"local://{tree}"  # fsspec's name for this machine's files
    assert names(videos(address, recursive=False)) == [f"{address}/a.mp4"]
    deep = [f"{address}/{name}" for name in ("a.mp4", "deep/c.mkv", "deep/deeper/d.webm", "z/f.mov")]
    assert names(videos(address, recursive=True)) == deep
    assert names(videos(f"{address}/none", recursive=False)) == [f"! {address}/none: no such file or folder"]
    status = next(found.status for found in videos(f"local://{clip}", recursive=False) if isinstance(found, Found))
    assert (status.st_size, status.st_mtime_ns // 10**9) == (clip.stat().st_size, clip.stat().st_mtime_ns // 10**9)
    with fetched(f"local://{clip}") as copy:
        assert Path(copy).read_bytes() == clip.read_bytes()
    assert not Path(copy).exists()
    lines = f'{{"file": "{address}/a.mp4"}}\n{{"file": "z/f.mov"}}\n{{"file": "none.mp4"}}\n'
    (tree / "list.jsonl").write_text(lines)
    assert all_names(parts([f"{address}/list.jsonl"])) == [
        f"{address}/a.mp4", f"{address}/z/f.mov", f"! {address}/none.mp4: no such file or folder",
    ]  # fmt: skip
    (part,) = parts([address], recursive=True, as_video=True)
    refused = f"! {address}: --as-video can't take pictures from a bucket"
    assert names(found_in(part, as_video=True)) == [refused]
    with pytest.raises(LlvidError, match="can't be opened"):
        list(videos("nonsense://a/b", recursive=False))
