"""Captions and paths as trainers want them, read by the real package datasets."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from terminal import scene

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_clip
from llava_video_cli.runs.formats import Csv
from llava_video_cli.runs.training_set import CaptionForm, PathForm


@pytest.fixture
def folder(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two clips and a broken one below `set`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set" / "more").mkdir(parents=True)
    shutil.copy(clip, "set/a.mp4")
    write_clip(Path("set/more/b.mp4"), scene(shape="square"))
    Path("set/broken.mp4").write_bytes(b"no video")
    return tmp_path


def captioned(*options: str) -> int:
    return run(["caption", "set", "-r", "-m", "demo", *options])


def rows(path: str) -> list[dict[str, Any]]:
    return sorted(map(json.loads, Path(path).read_text().splitlines()), key=lambda row: row["video_path"])


@pytest.mark.parametrize(
    ("answer", "form", "caption"),
    [
        ("The video shows a man who walks.", CaptionForm(strip_preamble=True), "A man who walks."),
        ("This short video clip features two dogs.", CaptionForm(strip_preamble=True), "Two dogs."),
        ("In this video, we can see a red car.", CaptionForm(strip_preamble=True), "A red car."),
        ("In the video, there is a cat.", CaptionForm(strip_preamble=True), "There is a cat."),
        ("The image depicts élan.", CaptionForm(strip_preamble=True), "Élan."),
        ("The video shows that he left.", CaptionForm(strip_preamble=True), "The video shows that he left."),
        ("A man shows the video.", CaptionForm(strip_preamble=True), "A man shows the video."),
        ("The video shows", CaptionForm(strip_preamble=True), "The video shows"),
        ("It moves.", CaptionForm("ohwx man,", "anime style"), "ohwx man, It moves. anime style"),
        ("It moves", CaptionForm("ohwx\n", ", anime"), "ohwx\nIt moves, anime"),
        ("", CaptionForm("ohwx"), "ohwx"),
        ("It moves. It is 3.5 m", CaptionForm(whole_sentences=True), "It moves."),
        ('He says "Go!" Then he', CaptionForm(whole_sentences=True), 'He says "Go!"'),
        ("它在动。然后它", CaptionForm(whole_sentences=True), "它在动。"),
        ("It moves to the", CaptionForm(whole_sentences=True), "It moves to the"),
        ("The video shows a dog. It", CaptionForm("x", "y", True, True), "x A dog. y"),
    ],
)  # fmt: skip
def test_a_caption_is_written_as_asked(answer: str, form: CaptionForm, caption: str) -> None:
    assert form.caption([form.text(answer, is_cut=True)]) == caption
    assert CaptionForm().caption([CaptionForm().text(answer, is_cut=True)]) == answer


def test_an_answer_that_ended_by_itself_keeps_its_end() -> None:
    assert CaptionForm(whole_sentences=True).text("One. Two", is_cut=False) == "One. Two"


@pytest.mark.usefixtures("folder")
def test_the_words_of_a_training_set(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("-o", "set.jsonl", "--sidecar", "txt", "--every", "1")
    assert captioned(*options) == 3
    plain = rows("set.jsonl")
    words = ("--prefix", "ohwx,", "--suffix", "end", "--max-new-tokens", "8", "--whole-sentences")
    assert captioned(*options, *words, "--overwrite") == 3
    for old, row in zip(plain, rows("set.jsonl"), strict=True):
        assert row["caption"].startswith("ohwx, ") and row["caption"].endswith(" end")
        assert row["settings"]["prefix"] == "ohwx," and row["settings"]["whole_sentences"] is True
        assert "prefix" not in old["settings"] and row["key"] != old["key"]
        assert not any("ohwx" in segment["text"] for segment in row["segments"])
        assert Path(row["video_path"]).with_suffix(".txt").read_text() == f"{row['caption']}\n"
    capsys.readouterr()
    assert captioned(*options, *words) == 3 and "0 captioned, 2 done before" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["as-given", "absolute", "relative-to-output"])
def test_paths_are_written_as_asked(style: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "out").mkdir()
    options = ("-o", "out/set.jsonl", "--paths", style, "--sidecar", "txt")
    assert captioned(*options) == 3
    want = {"as-given": "set/", "absolute": f"{folder}/set/", "relative-to-output": "../set/"}[style]
    assert [row["video_path"] for row in rows("out/set.jsonl")] == [f"{want}a.mp4", f"{want}more/b.mp4"]
    (failure,) = rows("out/set.errors.jsonl")
    assert failure["video_path"] == f"{want}broken.mp4"
    assert Path("set/a.txt").exists() and Path("set/more/b.txt").exists()

    Path("set/more/b.txt").unlink()  # is made anew, beside its video
    shutil.copy("set/a.mp4", "set/broken.mp4")
    capsys.readouterr()
    assert captioned(*options) == 0 and "1 captioned, 2 done before" in capsys.readouterr().err
    assert Path("set/more/b.txt").exists() and not Path("out/set.errors.jsonl").exists()


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
def test_the_package_datasets_reads_a_folder(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    assert captioned("-o", f"set/{name}") == 3
    read = datasets.load_dataset("videofolder", data_dir="set", split="train", cache_dir=str(folder / "cache"))
    read = read.cast_column("video", datasets.Video(decode=False))
    found = {Path(row["video"]["path"]).relative_to(folder / "set").as_posix(): row["caption"] for row in read}
    assert found.keys() == {"a.mp4", "more/b.mp4"}
    assert "circle" in found["a.mp4"] and "square" in found["more/b.mp4"]


@pytest.mark.usefixtures("folder")
def test_a_csv_file_that_was_begun_without_file_names_goes_on() -> None:
    shutil.move("set/more/b.mp4", "b.mp4")
    assert captioned("-o", "set/plain.csv") == 3
    shutil.move("set/plain.csv", "set/metadata.csv")
    shutil.move("b.mp4", "set/more/b.mp4")
    assert captioned("-o", "set/metadata.csv") == 3
    with Path("set/metadata.csv").open(newline="") as file:
        old = list(csv.DictReader(file, strict=True))
    assert len(old) == 2 and "file_name" not in old[0]
    assert captioned("-o", "set/metadata.csv", "--overwrite") == 3
    with Path("set/metadata.csv").open(newline="") as file:
        new = list(csv.DictReader(file, strict=True))
    assert sorted(row["file_name"] for row in new) == ["a.mp4", "more/b.mp4"]


def test_a_file_name_in_a_table_is_no_formula() -> None:
    form = PathForm.of(Path("set/metadata.csv"))
    values = dict.fromkeys(Csv().columns, "") | {"notes": [], **form.file_name("set/=1.mp4")}
    row = Csv(has_file_name=True)
    cells = row.encode(values | dict.fromkeys(("segments", "frames", "usage", "settings")))
    assert b'"./=1.mp4"' in cells and row.decode(cells)["file_name"] == "=1.mp4"


@pytest.mark.usefixtures("folder")
def test_what_cannot_be_done_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options, words in (
        (("set", "--paths", "relative-to-output"), "-o FILE"),
        (("set/a.mp4", "--prefix", "x"), "--prefix needs -o"),
        (("set", "-o", "x.jsonl", "--ray", "local", "--paths", "absolute"), "--paths can't be used with --ray"),
        (("set", "-o", "x.jsonl", "--prefix", "caf\udce9"), "not UTF-8"),
    ):
        assert run(["caption", "-m", "demo", *options]) == 2
        assert words in capsys.readouterr().err
    assert list(Path().iterdir()) == [Path("set")]
