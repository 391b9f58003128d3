"""Records as each format's own parser reads them, whatever their names and captions hold."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from records import ALL, CAPTIONS, NAMES, record

from llava_video_cli.errors import LlvidError, UsageError
from llava_video_cli.runs.formats import (
    Csv,
    JsonLines,
    Sidecars,
    check_output,
    json_line,
    srt,
    table_format,
    txt,
    vtt,
    write_sidecar,
)
from llava_video_cli.runs.record import Record, path_to_text, text_to_path


@pytest.mark.parametrize("name", NAMES)
def test_a_path_and_its_text(name: str) -> None:
    text = path_to_text(name)
    text.encode()
    assert text_to_path(text) == name
    assert (text == name) == (not name.startswith("file:") and all(not 0xDC80 <= ord(c) <= 0xDCFF for c in name))


def test_json_lines_are_what_json_reads_and_steer_no_terminal() -> None:
    rows = JsonLines()
    content = b"".join(rows.encode(each.values) for each in ALL)
    lines = content.split(b"\n")[:-1]
    assert [json.loads(line) for line in lines] == [each.values for each in ALL]
    assert not any(line.translate(None, bytes(range(0x20))) != line or b"\x7f" in line for line in lines)
    assert len(content.decode().splitlines()) == len(ALL), "also for readers that know further line ends"
    assert [rows.decode(row) for row in rows.split(io.BytesIO(content))] == [each.values for each in ALL]
    assert [rows.key(row) for row in rows.split(io.BytesIO(content))] == [each.key for each in ALL]


def test_a_key_is_found_wherever_it_stands() -> None:
    rows = JsonLines()
    assert rows.key(b'{"key": "abc", "caption": "x"}') == "abc"
    assert rows.key(b'{"caption": "\\"key\\": \\"no\\"", "key": "abc"}\n') == "abc"
    for line in (b'{"caption": "x"}', b'{"caption": "\\"key\\": \\"no\\""}', b"[1]", b"{", b""):
        with pytest.raises(ValueError):
            rows.key(line)


CELLS = [
    # what stands in a cell of a text, and of a path
    ("plain", "plain", "plain"), ("=1+1", "'=1+1", "./=1+1"), ("+1", "'+1", "./+1"), ("-1", "'-1", "./-1"),
    ("@SUM(A1)", "'@SUM(A1)", "./@SUM(A1)"), ("'=1", "''=1", "'=1"), ("'tis", "'tis", "'tis"),
    ("./=1", "./=1", "././=1"), ("./a.mp4", "./a.mp4", "./a.mp4"), ("a=1", "a=1", "a=1"), ("-->", "'-->", "./-->"),
    ("\t=1", "'\t=1", "file:%09%3D1"), ("\n-1", "'\n-1", "file:%0A-1"), ("a\r\x1b[2Jb", "a[2Jb", "file:a%0D%1B%5B2Jb"),
    ("a\u202egpj", "agpj", "file:a%E2%80%AEgpj"), ("\u200f=1", "'=1", "file:%E2%80%8F%3D1"),
    ("\uff1d1", "'\uff1d1", "./\uff1d1"),
    ("\u2066=1", "'=1", "file:%E2%81%A6%3D1"),
    ("नमस्\u200dते 👩\u200d🚀", "नमस्\u200dते 👩\u200d🚀", "नमस्\u200dते 👩\u200d🚀"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "cell", "path_cell"), CELLS)
def test_no_cell_of_a_csv_is_a_formula_or_steers_a_terminal(text: str, cell: str, path_cell: str) -> None:
    names = ("caption", "prompt", "model", "finish_reason")
    values = {**record(text).values, **dict.fromkeys(names, text), "notes": [text] if text else []}
    rows = Csv()
    row = rows.encode(values)
    (found,) = csv.DictReader(io.StringIO(row.decode(), newline=""), rows.columns, strict=True)
    assert {found[name] for name in (*names, "notes")} == {cell} and found["video_path"] == path_cell
    back = rows.decode(row)
    assert back["video_path"] == text and rows.encode(back) == row
    plain = re.sub("[\r\x1b\u202e\u200f\u2066]", "", text)
    assert {back[name] for name in names} == {plain} and back["notes"] == [plain]


def test_csv_is_what_csv_reads() -> None:
    rows = Csv()
    content = rows.header + b"".join(rows.encode(each.values) for each in ALL)
    read = list(csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True))
    assert [text_to_path(row["video_path"]).removeprefix("./") for row in read] == [each.path for each in ALL]
    plain = [each.text.replace("\x00", "").replace("\x1b", "") for each in ALL]
    assert [row["caption"].removeprefix("'") for row in read] == plain
    assert [json.loads(row["segments"]) for row in read] == [each.values["segments"] for each in ALL]
    found = list(rows.split(io.BytesIO(content)))
    assert found[0] == rows.header and [rows.key(row) for row in found[1:]] == [each.key for each in ALL]
    assert [rows.decode(row) for row in found[1:]] == [
        {**each.values, "caption": text} for each, text in zip(ALL, plain, strict=True)
    ]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_subtitles_are_what_a_subtitle_library_reads(caption: str) -> None:
    pysubs2 = pytest.importorskip("pysubs2")
    wanted = " ".join(caption.replace("\x00", "").replace("\x1b", "").split()).replace("-->", "→") or "-"
    for write, form in ((srt, "srt"), (vtt, "vtt")):
        text = write(record(caption=caption))
        cues = pysubs2.SSAFile.from_string(text, format_=form, keep_html_tags=True, keep_unknown_html_tags=True)
        assert [(cue.start, cue.end) for cue in cues] == [(0, 1500), (1500, 3661040)]
        assert len(cues) == 2 and cues[1].text == "Then nothing."
        unescaped = (
            cues[0].text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
            if form == "vtt"
            else cues[0].text
        )
        if not set(caption) & set("{}<>"):  # which the library reads as styles
            assert unescaped == wanted


def test_exact_bytes_of_subtitles_and_text() -> None:
    assert srt(record()) == (
        "1\n00:00:00,000 --> 00:00:01,500\nA circle.\n\n2\n00:00:01,500 --> 01:01:01,040\nThen nothing.\n\n"
    )
    assert vtt(record(caption="<i> & b")) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\n&lt;i&gt; &amp; b\n\n00:00:01.500 --> 01:01:01.040\nThen nothing.\n\n"
    )
    assert txt(record(caption=" A\nb\x1b[2J ")) == "A\nb[2J\n"


def test_what_datasets_loads_is_what_was_written(tmp_path: Path) -> None:
    """More than one of its chunks, of which the first one decides on the types: so they have to be larger."""
    datasets = pytest.importorskip("datasets")
    path = tmp_path / "captions.jsonl"
    rows = JsonLines()
    first = [record(f"clips/{n}.mp4", "x" * 2000, n) for n in range(6000)]
    noted = Record({**record("b.mp4").values, "notes": ["one broken packet skipped"]})
    everything = [*first, *ALL, noted]
    path.write_bytes(b"".join(rows.encode(each.values) for each in everything))
    assert path.stat().st_size > 11 << 20
    loaded = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"), chunksize=2**30
    )
    assert loaded["video_path"][:] == [each.values["video_path"] for each in everything]
    assert loaded["caption"][:] == [each.text for each in everything]
    assert loaded[-1]["segments"] == noted.values["segments"] and loaded[-1]["notes"] == noted.values["notes"]


def test_parquet_is_what_pyarrow_reads(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from llava_video_cli.runs.formats import write_parquet

    path = tmp_path / "captions.parquet"
    write_parquet(iter(ALL * 300), path)
    assert parquet.ParquetFile(path).num_row_groups == 3, "of 5000 rows each, which lie in memory"
    table = parquet.read_table(path)
    assert table.column_names[:2] == ["file", "caption"]
    assert table["file"].to_pylist() == [each.values["video_path"] for each in ALL] * 300
    assert table["caption"].to_pylist() == [each.text for each in ALL] * 300
    assert table["segments"].to_pylist()[3] == ALL[3].values["segments"]
    assert json.loads(table["settings"].to_pylist()[0]) == {"system": None}
    old = Record({**ALL[0].values, "notes": "of version 0.1"})
    write_parquet(iter([*ALL[:2], old]), path)
    assert parquet.read_table(path)["notes"].to_pylist() == [[], [], ["of version 0.1"]]
    write_parquet(iter(()), path)
    assert parquet.read_table(path).num_rows == 0


def test_other_endings_are_refused() -> None:
    with pytest.raises(LlvidError, match="there is no table format for"):
        table_format(Path("a.xls"))


def test_json_is_escaped_only_where_it_must_be() -> None:
    assert json_line({"é日🎬": "a\u2028\x85\ud800"}) == '{"é日🎬": "a\\u2028\\u0085\\ud800"}'


def test_marks_that_reorder_text_are_escaped_and_what_is_no_json_is_refused() -> None:
    assert json_line("a\u202e\U000e0001") == '"a\\u202e\\udb40\\udc01"'
    with pytest.raises(ValueError):
        json_line(float("nan"))


def test_times_of_subtitles_are_rounded_and_not_negative() -> None:
    segments = [{"start_seconds": -0.5, "end_seconds": 1.9996, "text": "a"}]
    assert srt(Record({"segments": segments})) == "1\n00:00:00,000 --> 00:00:02,000\na\n\n"


def test_a_row_without_a_key_or_with_other_cells_is_none() -> None:
    key = f"{7:032x}"
    for rows, row in ((JsonLines(), json_line({"key": key}).encode()), (Csv(), f'"a","{key}"\n'.encode())):
        assert rows.request_key(row) == ""
    for read in (Csv().key, Csv().decode):
        with pytest.raises(ValueError, match="2 cells, not 11"):
            read(f'"a","{key}"\n'.encode())


def test_a_table_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    assert table_format(path).header == Csv().header
    path.write_bytes(Csv(scored=True).header)
    assert table_format(path).header == Csv(scored=True).header, "also without choices"


def test_quotes_that_never_end_take_no_memory_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b'"')
        for megabytes in (33, 66):
            file.seek(megabytes * 2**20)
            file.write(b"\n")
    with path.open("rb") as file, pytest.raises(LlvidError, match="a row is longer than 67,108,864 bytes"):
        list(Csv().split(file))


def test_a_sidecar_is_put_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    """It is not written over it: what ends llvid in between leaves the old one."""
    path, same = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("old")
    same.hardlink_to(path)
    write_sidecar("txt", path, record())
    assert (path.read_text(), same.read_text()) == ("A circle.\n", "old")


def test_sidecars_lie_beside_their_video_or_as_it_does_below_its_folder(tmp_path: Path) -> None:
    assert Sidecars(("txt", "srt")).paths("clips/b/a.mp4", "clips") == {
        "txt": Path("clips/b/a.txt"), "srt": Path("clips/b/a.srt"),
    }  # fmt: skip
    beside = Sidecars(("vtt",), tmp_path)
    assert beside.paths("clips/b/a.mp4", "clips") == {"vtt": tmp_path / "b" / "a.vtt"}
    assert beside.paths("clips/b/a.mp4", "") == {"vtt": tmp_path / "a.vtt"}


def test_sidecars_of_a_folder_of_pictures_take_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for kinds, name in ((Sidecars(("txt",)), folder), (Sidecars(("txt",), Path("texts")), Path("texts") / "frames")):
        for path, root in ((".", ""), (".", "."), ("../frames", "../frames")):
            (sidecar,) = kinds.paths(path, root).values()
            assert sidecar.resolve() == Path(f"{name}.txt").resolve(), (path, root)
    assert Sidecars(("txt",)).paths("..", "") == {"txt": Path(f"{tmp_path}.txt")}


def test_a_sidecar_that_cannot_be_written_names_its_own_option(tmp_path: Path) -> None:
    """`-o` is where the records go: another one would change nothing."""
    (tmp_path / "film.txt").mkdir()
    (tmp_path / "file").write_text("")
    for video, folder in ((tmp_path / "film.mp4", None), (Path("film.mp4"), tmp_path / "file")):
        with pytest.raises(LlvidError, match="can't") as caught:
            Sidecars(("txt",), folder).write(record(), str(video), "")
        assert caught.value.hint == "choose another path with --output-dir"


def test_text_and_subtitles_are_for_one_video() -> None:
    for name in ("a.jsonl", "a.CSV", "a.parquet"):
        check_output(Path(name), one_video=False)
    check_output(Path("a.srt"), one_video=True)
    with pytest.raises(UsageError, match="must end in") as error:
        check_output(Path("a.srt"), one_video=False)
    assert error.value.hint == "--sidecar srt writes a .srt file next to each video; -o a.jsonl takes all captions"
    with pytest.raises(UsageError, match="must end in"):
        check_output(Path("a.mp4"), one_video=True)
    with pytest.raises(UsageError, match="must end in") as error:
        check_output(Path("/dev/stdout"), one_video=False)
    assert str(error.value.hint).startswith("leave out -o")
