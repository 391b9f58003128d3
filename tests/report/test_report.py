"""`llvid report` as a user runs it: one page for any results, or one clear error."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from results import HOSTILE, Page, line, reported, write
from terminal import scene

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_clip, write_picture
from llava_video_cli.report.page import write_report
from llava_video_cli.report.results import open_results


def test_a_video_that_was_deleted_is_not_said_to_be_in_another_folder(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.mp4").write_bytes(clip.read_bytes())
    write(tmp_path / "captions.jsonl", line("gone.mp4"), line("here.mp4"))
    assert run(["report", "captions.jsonl"]) == 0
    assert capsys.readouterr().err == "1 video can't be read any more\n"


def test_stdout_has_the_path_and_stderr_the_notes(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "captions.jsonl", line(str(clip)), line("gone.mp4"))
    assert run(["report", "run/captions.jsonl"]) == 0
    out, err = capsys.readouterr()
    unreadable, hint = err.splitlines()
    assert (out, unreadable) == ("captions-report.html\n", "1 video can't be read any more")
    assert hint.startswith("gone.mp4 is relative to the folder that the run was started in") and "--paths" in hint
    assert {path.name for path in tmp_path.iterdir()} == {"run", "captions-report.html"}
    assert run(["report", "run/captions.jsonl", "--json", "-q", "--overwrite", "-o", "page.html"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and json.loads(out) == {
        "report": "page.html",
        "results": 2,
        "failures": 0,
        "unreadable": 1,
        "bytes": (tmp_path / "page.html").stat().st_size,
        "notes": [],
    }


def test_a_video_that_is_gone_from_where_it_was_is_no_matter_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    write(tmp_path / "out.jsonl", line("broken.mp4"), line(str(tmp_path / "gone.mp4")), line("https://a.b/c.mp4"))
    assert run(["report", str(tmp_path / "out.jsonl"), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().err == "3 videos can't be read any more\n"


def test_a_list_with_half_a_character_is_one_video_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "out.jsonl", line(["\ud800.png", "b.png"], "A caption."))  # type: ignore[arg-type]
    assert run(["report", str(tmp_path / "out.jsonl"), "-o", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().err == "1 video can't be read any more\n"
    assert "A caption." in (tmp_path / "page.html").read_text()


def test_what_a_line_says_wrongly_is_left_out_and_a_line_added_later_is_no_result(tmp_path: Path) -> None:
    ends = (0.0, None, 5.0)
    parts = [{"start_seconds": 1.0, "end_seconds": end, "text": "a"} for end in ends]
    scores = {"a": 1.5, "b": -0.5, "c": True, "d": "1", "e": 0, "f": 1}
    results = open_results(write(tmp_path / "out.jsonl", line(scores=scores, segments=[*parts, "a", {"text": 1}])))
    with (tmp_path / "out.jsonl").open("a") as file:
        file.write("{}\n")
    (result,) = results
    assert result.scores == {"e": 0.0, "f": 1.0}
    assert [each.end_seconds for each in result.segments] == [1.0, 2.0, 5.0]


def test_a_link_is_a_quoted_path_of_a_file_that_a_browser_does_not_run(tmp_path: Path) -> None:
    names = ('a b#1?%"<.mp4', "page.html", "picture.svg", "gone.mp4", "javascript:alert(1)", "HTTPS://a/b")
    for name in names[:3]:
        (tmp_path / name).touch()
    results = write(tmp_path / "out.jsonl", *map(line, names))
    with (tmp_path / "page").open("w+") as file:
        write_report(file, open_results(results), tmp_path / "below", sheets=False)
        file.seek(0)
        rows = Page(file.read()).rows
    links = {row["name"]: row["link"] for row in rows if "link" in row}
    assert links == {names[0]: "../a%20b%231%3F%25%22%3C.mp4", names[5]: names[5]}


def test_times_of_more_frames_than_a_line_can_show_are_left_out(tmp_path: Path) -> None:
    lines = [line(frames={"count": count, "times_seconds": [0.0] * count}) for count in (256, 257)]
    with (tmp_path / "page").open("w+") as file:
        write_report(file, open_results(write(tmp_path / "out.jsonl", *lines)), tmp_path, sheets=False)
        file.seek(0)
        assert [len(row.get("times", ())) for row in Page(file.read()).rows] == [256, 0]


def test_what_never_ends_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    endless = tmp_path / "long.jsonl"
    with endless.open("wb") as file:
        file.truncate(2**34)  # a hole: takes no room on the disk
    for path, words in (
        (Path("/dev/zero"), "/dev/zero: not a regular file"),
        (tmp_path / "pipe.jsonl", "pipe.jsonl: not a regular file"),
        (endless, "long.jsonl, line 1: longer than 67,108,864 bytes"),
    ):
        assert run(["report", str(path), "-o", str(tmp_path / "page.html")]) == 1
        assert words in capsys.readouterr().err
    results = write(tmp_path / "out.jsonl", line("a.mp4"))
    os.mkfifo(tmp_path / "out.errors.jsonl")
    assert len(reported(results, "--no-sheets").rows) == 1


def test_a_row_has_the_values_of_its_line(tmp_path: Path) -> None:
    segments = [{"start_seconds": k, "end_seconds": k + 1, "text": f"part {k}"} for k in range(2)]
    results = write(
        tmp_path / "c.jsonl",
        line("a/b.mp4", segments=segments, notes="one\n\ntwo", finish_reason="length"),
        line("a/c.mp4", notes=["three"]),
        line("a/d.png", frames=None, segments=[]),
        line("a/e.mp4", model="other"),
    )
    write(tmp_path / "c.errors.jsonl", {"video_path": "a/f.mp4", "error": "a/f.mp4: no video stream", "hint": "try"})
    first, second, third, fourth, fifth = reported(results, "--no-sheets").rows
    assert first["segments"] == [[0, 1, "part 0"], [1, 2, "part 1"]] and first["finish"] == "length"
    assert first["notes"] == ["one", "two"] and second["notes"] == ["three"]
    assert first["settings"]["prompt"] == "What happens?" and first["settings"]["sampling"]["frames"] == 4
    assert "settings" not in second and "settings" not in third, "those of the row before"
    assert fourth["settings"]["model"] == "other"
    assert first["duration"] == 2 and first["times"] == [0, 0.5, 1, 1.5] and first["usage"] == {"generated_tokens": 9}
    assert fifth == {"name": "a/f.mp4", "error": "no video stream", "hint": "try"}


def test_lines_of_batch_and_lines_with_few_fields(tmp_path: Path) -> None:
    results = write(
        tmp_path / "out.jsonl",
        {"id": "q1", "video": "a.mp4", "question": "What is it?", "answer": "A circle."},
        {"id": 2, "media": ["b.mp4", "c.png"], "answer": ""},
        {"video_path": "d.mp4", "caption": "x", "segments": None, "frames": "?", "notes": 3, "settings": []},
        {
            "video_path": "e.mp4",
            "caption": "y",
            "segments": [7, {}, {"text": "all"}, {"end_seconds": 1e400, "text": "z"}],
        },
    )
    write(tmp_path / "out.errors.jsonl", {"id": "q9", "video": "z.mp4", "error": "broken"})
    first, second, third, fourth, last = reported(results, "--no-sheets").rows
    assert first == {"name": "a.mp4", "id": "q1", "question": "What is it?", "text": "A circle.", "settings": {}}
    assert second == {"name": "b.mp4", "id": "2"} and third == {"name": "d.mp4", "text": "x"}
    assert fourth["segments"] == [[0, 0, "all"], [0, 0, "z"]]
    assert last == {"name": "z.mp4", "id": "q9", "error": "broken"}


def test_a_file_of_errors_of_somebody_else_is_not_read(tmp_path: Path) -> None:
    results = write(tmp_path / "out.jsonl", line("a.mp4"))
    write(tmp_path / "out.errors.jsonl", {"mine": 1})
    assert len(reported(results, "--no-sheets").rows) == 1
    write(tmp_path / "out.jsonl.errors.jsonl", {"video_path": "b.mp4", "error": "broken", "hint": None})
    assert [row["name"] for row in reported(results, "--no-sheets").rows] == ["a.mp4", "b.mp4"]


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_never_becomes_markup(text: str, tmp_path: Path) -> None:
    lines = [line(f"clips/{text}", text, prompt=text, notes=text, finish_reason=text, settings={text: {text: text}})]
    results = write(tmp_path / "h.jsonl", *lines)
    write(tmp_path / "h.errors.jsonl", {"video_path": text, "error": text, "hint": text})
    page = reported(results)
    row, failure = page.rows
    assert row["name"] == f"clips/{text}" and row["text"] == text and failure["error"] == text
    assert row["settings"][text] == {text: text} and row["segments"][0][2] == text

    plain = reported(write(tmp_path / "plain.jsonl", line("clips/a.mp4")), "--no-sheets")
    assert tags(page.text) == [*tags(plain.text), "script"], "the sheet's block is all that is added"
    blocks = re.findall('<script type="application/json"[^>]*>(.*?)</script>\n', page.text, re.DOTALL)
    assert len(blocks) >= 2 and not any("<" in block for block in blocks), "browsers know end tags without an end"


def tags(text: str) -> list[str]:
    tags = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert not any(name.startswith("on") for name, _ in attrs)

    Tags().feed(text)
    return tags


def test_the_policy_only_allows_the_pages_own_script_and_style(tmp_path: Path) -> None:
    text = reported(write(tmp_path / "p.jsonl", line()), "--no-sheets").text
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    for kind, element in (("script", "<script>"), ("style", "<style>")):
        body = text.split(element)[1].split(f"</{kind}>")[0]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy[1]
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?:|@import|url\(|innerHTML|insertAdjacent|\beval\b", text)


def test_a_sheet_shows_the_frames_that_the_model_saw(clip: Path, tmp_path: Path) -> None:
    sampling = line()["settings"]["sampling"]
    results = write(
        tmp_path / "s.jsonl",
        line(str(clip)),
        line(str(clip), "Again."),
        line(str(clip), settings={"sampling": sampling | {"frames": 2}}),
        line(str(clip), settings={"sampling": sampling | {"frames": 16}}, frames={"count": 16}),
        line(str(clip), settings={"sampling": {"frames": -1, "odd": 1}}),
    )
    page = reported(results)
    assert [row["sheet"] for row in page.rows] == [0, 0, 1, 2, 2], "rows of one video in a row share its sheet"
    red = [(np.asarray(page.sheet(index)).astype(int) @ [1, -1, 0] > 90).any(axis=0) for index in range(3)]
    runs = [int(np.diff(np.flatnonzero(columns)).__gt__(8).sum()) + 1 for columns in red]
    assert runs == [4, 2, 4], "four in a row, two in a row, two rows of four"


def test_a_sheet_shades_what_the_model_did_not_get(tmp_path: Path) -> None:
    clip = tmp_path / "wide.mp4"
    write_clip(clip, scene(width=320, height=180, x=(30 - 70) / 180, direction="still", travel=0.0))
    frames = line()["frames"]
    fitted = {"sampling": {"frames": 4, "fit": "pad"}}
    results = write(
        tmp_path / "c.jsonl",
        line(str(clip)),  # of an older version
        line(str(clip), frames=frames | {"fit": "crop", "visible_share": 0.562}),
        line(str(clip), frames=frames | {"fit": "pad", "visible_share": 1.0}, settings=fitted),
        line(str(clip), frames=frames | {"fit": "server", "visible_share": None}),
        line(str(clip), frames=frames | {"fit": "stretch", "visible_share": 1.0}),  # the model's own way
        line(str(clip), frames=frames | {"fit": "crop", "visible_share": 0.431, "input_size": [224, 224]}),  # of 256
    )
    page = reported(results)
    reds, greys = [], []
    for index in range(6):
        pixels = np.asarray(page.sheet(index)).astype(int).reshape(-1, 3)
        reds.append(int((pixels @ [1, -1, 0]).max()))
        greys.append(float((np.abs(pixels - (123, 117, 104)).max(axis=1) < 12).mean()))
    assert all(30 < reds[index] < 90 for index in (1, 5)) and all(red > 130 for red in (reds[0], *reds[2:5]))
    assert greys[2] > 0.2 and max(greys[:2] + greys[3:]) < 0.1
    seen = [(row.get("fit"), row.get("share")) for row in page.rows[:5]]
    assert seen == [(None, None), ("crop", 0.562), ("pad", 1), ("server", None), ("stretch", 1)]


@pytest.mark.parametrize(("share", "size"), [(1e-300, [30, 30]), (1e-5, [16, 4096])])
def test_a_share_that_no_model_sees_does_no_harm(share: float, size: list[int], clip: Path, tmp_path: Path) -> None:
    frames = line()["frames"] | {"fit": "crop", "visible_share": share, "input_size": size}
    assert reported(write(tmp_path / "c.jsonl", line(str(clip), frames=frames))).sheet(0)


def test_a_sheet_tells_the_size_that_the_model_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(Path("wide.mp4"), scene(width=320, height=180))
    for number, fit in enumerate(("auto", "pad", "stretch")):
        assert run(["caption", "wide.mp4", "-m", "demo", "-n", "4", "--fit", fit, "-q", "-o", f"{number}.jsonl"]) == 0
        record = json.loads(Path(f"{number}.jsonl").read_text())
        assert (record["frames"]["size"], record["frames"]["input_size"]) == ([320, 180], [48, 48])
        told = reported(Path(f"{number}.jsonl")).sheet(0)
        del record["frames"]["size"], record["frames"]["input_size"]  # as older versions wrote it
        untold = reported(write(tmp_path / "old.jsonl", record)).sheet(0)
        assert isinstance(told, Image.Image) and isinstance(untold, Image.Image)
        assert told.width == untold.width and told.height - untold.height >= 12, "a line at the bottom"
        last = np.asarray(told.convert("L"))[untold.height :]
        assert last.max() > 200 and np.ptp(np.flatnonzero((last > 120).any(axis=0))) > told.width // 3


def test_sheets_of_pictures_and_of_very_narrow_images_stay_small(tmp_path: Path) -> None:
    write_picture(tmp_path / "p.png", scene(width=1600, height=1200))
    Image.new("RGB", (3, 3000)).save(tmp_path / "sliver.png")
    noise = np.random.default_rng(1).integers(0, 256, (1080, 1920, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=0)
    names = ("p.png", "sliver.png", "noise.png")
    page = reported(write(tmp_path / "p.jsonl", *(line(str(tmp_path / name), frames=None) for name in names)))
    for index in range(3):
        sheet = page.sheet(index)
        assert isinstance(sheet, Image.Image) and max(sheet.size) <= 640
    assert len(page.text) < 300_000


def test_paths_relative_to_here_or_to_the_results_and_odd_bytes(clip: Path, tmp_path: Path) -> None:
    shutil.copy(clip, tmp_path / "beside.mp4")
    shutil.copy(clip, os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4"))
    names = ("beside.mp4", "file:caf%E9.mp4", "file:no%00thing", "x" * 300, "nul\0", "\ud800.mp4", ".", "gone.mp4")
    page = reported(write(tmp_path / "r.jsonl", *(line(name) for name in names)))
    sheets = [page.sheet(index) for index in range(len(names))]
    assert all(isinstance(sheet, Image.Image) for sheet in sheets[:2])
    assert page.rows[1]["name"] == "caf\\xe9.mp4"
    assert all(isinstance(sheet, str) and sheet for sheet in sheets[2:]) and sheets[-1] == "no such file"


def test_an_incomplete_last_line_gives_a_note_and_a_growing_file_is_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = write(tmp_path / "t.jsonl", line(), line())
    whole = results.read_bytes()
    results.write_bytes(whole[:-20])
    page = tmp_path / "t.html"
    assert run(["report", str(results), "-o", str(page), "--no-sheets"]) == 0
    assert capsys.readouterr().err == f"{results}, line 2 was skipped: it is incomplete\n"
    results.write_bytes(whole.rstrip(b"\n"))
    assert len(reported(results, "--no-sheets").rows) == 2, "only the line's end is missing"
    results.write_bytes(b"\n" + whole.replace(b"\n", b"\r\n\r\n"))
    assert len(reported(results, "--no-sheets").rows) == 2
    results.write_bytes(b"")
    write(tmp_path / "t.errors.jsonl", {"video_path": "a.mp4", "error": "broken"})
    assert len(reported(results).rows) == 1, "all failed"


def test_a_file_without_results_gives_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = json.dumps(line())
    files = {
        "empty.jsonl": "",
        "blank.jsonl": "\n \n",
        "text.jsonl": "hello",
        "broken.jsonl": good + "\n{\n" + good + "\n",
        "list.jsonl": good + "\n[1]\n",
        "other.jsonl": good + "\n" + good + '\n{"video_path": "a.mp4"}\n',
        "deep.jsonl": "[" * 100_000 + "\n",
        "mine.errors.jsonl": '{"video_path": "a.mp4", "error": "x"}\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.jsonl").write_bytes(good.encode() + b'\n{"video_path": "caf\xe9"}\n')
    (tmp_path / "there.html").touch()
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "good.jsonl").write_text(good + "\n")
    for arguments, code, words in (
        (["empty.jsonl"], 1, "has no results"),
        (["blank.jsonl"], 1, "has no results"),
        (["text.jsonl"], 1, "text.jsonl, line 1: not JSON"),
        (["broken.jsonl"], 1, "broken.jsonl, line 2: not JSON"),
        (["list.jsonl"], 1, "list.jsonl, line 2: not a JSON object"),
        (["other.jsonl"], 1, "other.jsonl, line 3: no video with a caption or an answer"),
        (["deep.jsonl"], 1, "deep.jsonl, line 1: not JSON"),
        (["latin.jsonl"], 1, "latin.jsonl, line 2: not JSON"),
        (["mine.errors.jsonl"], 1, "line 1: no video with a caption"),
        (["gooood.jsonl"], 1, "gooood.jsonl: no such file"),
        (["."], 1, ".: a folder, not a results file"),
        (["a\0b"], 1, "can't be opened"),
        (["good.jsonl", "-o", "there.html"], 1, "there.html exists"),
        (["good.jsonl", "-o", "folder.html", "--overwrite"], 1, "folder.html is a folder"),
        (["good.jsonl", "-o", "page.txt"], 2, "must end in .html"),
        (["good.jsonl", "-o", "no/page.html"], 1, "can't write no/page.html"),
    ):
        assert run(["report", *arguments]) == code, arguments
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and words in err.splitlines()[0], err
        assert len(err.splitlines()) <= 2
    assert "did you mean 'good.jsonl'?" in (run(["report", "gooood.jsonl"]), capsys.readouterr().err)[1]
    assert not list(tmp_path.glob(".*")) and (tmp_path / "there.html").read_text() == ""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak")
def test_memory_does_not_grow_with_the_results(tmp_path: Path) -> None:
    program = (  # ru_maxrss would begin with what this process takes
        "import sys; from pathlib import Path; from llava_video_cli.cli.app import run; run(sys.argv[1:]);"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    peaks = []
    for count in (10, 3000):
        results = tmp_path / f"{count}.jsonl"
        write(results, *(line(f"clips/{number}.mp4", "A red circle moves. " * 200) for number in range(count)))
        command = [sys.executable, "-c", program, "report", str(results), "-q", "-o", str(results.with_suffix(".html"))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        peaks.append(int(done.stdout.split()[-1]))
        assert results.with_suffix(".html").stat().st_size > 4000 * count
    assert peaks[1] < 1.15 * peaks[0], peaks
