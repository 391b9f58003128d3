"""Which files a run goes through, and what it has to do with them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llava_video_cli.errors import MediaError
from llava_video_cli.preset import Preset
from llava_video_cli.runs.caption import Task, plan_folder
from llava_video_cli.runs.formats import JsonLines, Sidecars
from llava_video_cli.runs.ledger import Ledger
from llava_video_cli.video.files import Found, find, natural
from llava_video_cli.video.sampling import Sampling

TASK = Task(Preset("test", "", model="demo"))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def paths(*named: Path | str, recursive: bool = False) -> list[str]:
    found = list(find(map(str, named), recursive=recursive))
    assert all(isinstance(each, Found) for each in found), found
    return [each.path for each in found if isinstance(each, Found)]


def test_a_folder_gives_its_videos_in_order_each_once(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.mp4",
        "a.MKV",
        "c.webm",
        "notes.txt",
        "x.jsonl",
        ".hidden.mp4",
        "sub/d.ts",
        "sub/deep/e.gif",
        "s.mp3",
    )
    touch(tmp_path / "both", "a.JPG", "b.png", "c.mp4", "d.svg", "e.eps", ".f.png")
    assert [Path(path).name for path in paths(tmp_path / "both")] == ["a.JPG", "b.png", "c.mp4"]
    shutil.rmtree(tmp_path / "both")
    (tmp_path / "empty").mkdir()
    (error,) = find([str(tmp_path / "empty")], report_empty=True)
    assert "no videos or pictures in it" in str(error) and not list(find([str(tmp_path / "empty")]))
    assert paths(tmp_path) == [str(tmp_path / name) for name in ("a.MKV", "b.mp4", "c.webm", "s.mp3")]
    found = paths(tmp_path, tmp_path / "b.mp4", tmp_path / "sub" / ".." / "b.mp4", recursive=True)
    assert [os.path.relpath(path, tmp_path) for path in found] == [
        "a.MKV", "b.mp4", "c.webm", "s.mp3", "sub/d.ts", "sub/deep/e.gif",
    ]  # fmt: skip
    assert paths(tmp_path / "notes.txt") == [str(tmp_path / "notes.txt")], "what is named is taken"


def test_subtitles_and_lists_beside_a_video_are_no_media(tmp_path: Path) -> None:
    """Python's table calls .ass sound, and a system's calls many more so, or video."""
    others = ("ass", "ssa", "srt", "vtt", "sub", "idx", "lrc", "smi", "m3u", "m3u8", "pls", "mid", "mng", "dts")
    touch(tmp_path, "film.mp4", "sound.opus", "film.ASS", *(f"film.{each}" for each in others))
    assert [Path(path).name for path in paths(tmp_path)] == ["film.mp4", "sound.opus"]
    assert paths(tmp_path / "film.m3u") == [str(tmp_path / "film.m3u")], "what is named is taken"


def test_links_and_odd_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "folder.mp4/b.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo.mp4")
    found = list(find([str(tmp_path), str(tmp_path / "no\nsuch"), "a\0b"], recursive=True))
    names = [Path(each.path).name for each in found if isinstance(each, Found)]
    assert names == ["a.mp4", "b.mp4", "link.mp4"]
    words = [str(each).rsplit("/", 1)[-1] for each in found if isinstance(each, MediaError)]
    assert words == [
        "gone.mp4: can't be opened: No such file or directory", "no\nsuch: no such file or folder",
        "a\0b: can't be opened: embedded null byte",
    ]  # fmt: skip


def sorted_out(folder: Path, done: set[str], sidecars: Sidecars, *, overwrite: bool = False) -> list[object]:
    todo = plan_folder(find([str(folder)]), TASK, done, sidecars, folder, overwrite=overwrite)
    names = [Path(found.path).name for found, _ in todo.videos]
    return [names, todo.done, len(todo.failures), [path.name for path in todo.kept]]


def test_what_is_done_and_what_is_not(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    todo = plan_folder(find([str(tmp_path)]), TASK, set(), Sidecars(), tmp_path, overwrite=False)
    keys = dict(zip("abc", (key for _, key in todo.videos), strict=True))
    done = {keys["a"], keys["b"]}
    assert sorted_out(tmp_path, done, Sidecars()) == [["c.mp4"], 2, 0, []]
    os.utime(tmp_path / "a.mp4", ns=(0, 1))
    assert sorted_out(tmp_path, done, Sidecars()) == [["a.mp4", "c.mp4"], 1, 0, []], "another file by now"
    here = Path.cwd()
    os.chdir(tmp_path.parent)
    try:
        relative = plan_folder(find([tmp_path.name]), TASK, done, Sidecars(), Path(tmp_path.name), overwrite=False)
    finally:
        os.chdir(here)
    assert relative.done == 1, "however it is named"


def test_another_prompt_or_setting_is_another_caption(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    status = (tmp_path / "a.mp4").stat()
    tasks = [TASK, Task(Preset("other name", "other words", model="demo"))]
    assert len({task.key("a.mp4", status) for task in tasks}) == 1, "a preset's name says nothing"
    tasks += [
        Task(Preset("test", "", model="demo", prompt="Why?")),
        Task(Preset("test", "", model="demo", system="Be brief")),
        Task(Preset("test", "", model="other")), Task(Preset("test", "", model="demo", sampling=Sampling(frames=4))),
        Task(TASK.preset, 10.0), Task(TASK.preset, None, (("quantize", "4bit"),)),
    ]  # fmt: skip
    assert len({task.key("a.mp4", status) for task in tasks}) == 7
    assert TASK.key("b.mp4", status) != TASK.key("a.mp4", status)


def test_sidecars_decide_too(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "b.mkv", "c.mp4", "c.txt")
    text = Sidecars(("txt",))
    todo = plan_folder(find([str(tmp_path)]), TASK, set(), Sidecars(), tmp_path, overwrite=False)
    done = {key for found, key in todo.videos if found.path.endswith("a.mp4")}
    assert sorted_out(tmp_path, done, text) == [["b.mkv"], 1, 1, ["c.txt"]]
    both = Sidecars(("txt", "srt"))
    assert sorted_out(tmp_path, done, both) == [["b.mkv", "c.mp4"], 1, 1, ["c.txt"]], "c.srt is to be made"
    assert sorted_out(tmp_path, set(), text, overwrite=True) == [["a.mp4", "b.mkv", "c.mp4"], 0, 1, []]


def test_a_sidecar_whose_name_is_too_long_is_a_failure(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", f"{'x' * 251}.mp4")
    assert sorted_out(tmp_path, set(), Sidecars(("txt",))) == [["a.mp4", f"{'x' * 251}.mp4"], 0, 0, []]
    text = Sidecars(("txt", "json"))
    todo = plan_folder(find([str(tmp_path)]), TASK, set(), text, tmp_path, overwrite=False)
    assert "json can't be written: File name too long" in str(todo.failures[0].cause)
    assert sorted_out(tmp_path, todo.keys, text) == [[], 1, 1, []], "also of one that has a record"


def test_a_hundred_thousand_finished_entries(tmp_path: Path) -> None:
    """A tenth of them here, so that a slow machine stays quick: the benchmark has all."""
    for number in range(10_000):
        (tmp_path / f"{number:06d}.mp4").touch()
    output = tmp_path / "out.jsonl"
    todo = plan_folder(find([str(tmp_path)]), TASK, set(), Sidecars(), tmp_path, overwrite=False)
    rows = JsonLines()
    output.write_bytes(
        b"".join(
            rows.encode({"video_path": found.path, "caption": "x" * 200, "key": key}) for found, key in todo.videos
        )
    )
    with Ledger(output) as ledger:
        again = plan_folder(find([str(tmp_path)]), TASK, ledger.done, Sidecars(), tmp_path, overwrite=False)
    assert (len(again.videos), again.done) == (0, 10_000)


def test_digits_of_other_scripts_are_letters_of_a_name() -> None:
    names = ["a2", "a10", "a1\u0663", "\u0663", "\u00b2", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a1\u0663", "a2", "a10", "\u00b2", "\u0663"]
