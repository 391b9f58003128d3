"""Moments: their borders to the frame, of a model whose answers are known and of the demo checkpoint; and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pysubs2
import pytest
from numpy.typing import NDArray
from waiting_model import USAGE, WaitingModel

from llava_video_cli import (
    Failure,
    Frames,
    Loading,
    ModelError,
    Preset,
    Record,
    Request,
    Sampling,
    Scores,
    UsageError,
    find_moments,
    load_preset,
    open_model,
)
from llava_video_cli.cli.app import run
from llava_video_cli.conversation import Chunk
from llava_video_cli.demo.questions import CLAIMS, holds
from llava_video_cli.demo.world import Scene, frames, random_scene
from llava_video_cli.evaluation.cut_list import check_cuts, write_cuts
from llava_video_cli.evaluation.find import is_clause, query_of
from llava_video_cli.report.results import open_results
from llava_video_cli.runs.record import path_to_text

PRESET = Preset("test", "", "seeing", sampling=Sampling(frames=8))
FPS, DEMO_FPS = 10, 12
LAMP, DARK, LIGHT = slice(10, 22), 40, 220


class Seeing(WaitingModel):
    """Sees a lamp: that it is lit in most frames, that it is turned on, or that it blinks."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": "seeing", "versions": {}}

    def stream(self, request: Request) -> Iterator[Chunk]:
        (medium,) = request.media
        assert isinstance(medium, Frames)
        self.asked.append(request.turns[-1].text)
        self.seen.append(medium)
        lit = medium.images[:, LAMP, LAMP].mean((1, 2, 3)) > 128
        shown = {
            "Is it lit?": float(lit.mean()),
            "Is it turned on?": float((lit[1:] > lit[:-1]).any()),
            "Does it blink?": float((lit[1:] != lit[:-1]).sum() > 1),
        }[request.turns[-1].text]
        logprobs = {"Yes": float(np.log(max(shown, 0.01))), "No": float(np.log(max(1 - shown, 0.01)))}
        yield Chunk("", "stop", USAGE, Scores(logprobs, dict.fromkeys(logprobs, 1)))


def write_film(path: Path, pictures: Iterator[NDArray[np.uint8]], fps: int) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "18", "preset": "veryfast"})
        for image in pictures:
            if not stream.codec_context.is_open:
                stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def lamp(path: Path, lit: Sequence[bool], grounds: Sequence[int] = ()) -> Path:
    """Write a film of a lamp; `grounds` are what is behind it in each frame."""

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for number, is_lit in enumerate(lit):
            image = np.full((48, 64, 3), grounds[number] if grounds else 20, np.uint8)
            image[LAMP, LAMP] = LIGHT if is_lit else DARK
            yield image

    return write_film(path, pictures(), FPS)


def moments(film: Path, question: str, model: WaitingModel | None = None, **options: Any) -> list[dict[str, Any]]:
    run = find_moments(question, film, preset=PRESET, model=model or Seeing(), **options)
    (record,) = run
    assert isinstance(record, Record), record
    assert run.ranked() == [{"video_path": str(film), **moment} for moment in record.values["moments"]]
    found: list[dict[str, Any]] = record.values["moments"]
    return found


@pytest.mark.parametrize("text", [*CLAIMS["claim"], "a bus stops", "a red car turns left", "two dogs are asleep"])
def test_clauses(text: str) -> None:
    text = text.format(shape="circle", color="red", start="red", end="blue", motion="moves left")
    assert is_clause(text)
    assert query_of(text).question == f"In the video, {text}. Yes or no?"


@pytest.mark.parametrize(
    "text",
    [*CLAIMS["shows"], "a red bus", "a dress", "two dogs", "a man with glasses", "people who sing", "someone's hat"],
)
def test_nouns(text: str) -> None:
    text = text.format(shape="circle", color="red", start="red", end="blue", motion="moves left")
    assert not is_clause(text)
    assert query_of(text).question == f"Does the video show {text}?"


def test_a_question_and_a_template() -> None:
    assert query_of(" Is it\nlit? ").question == "Is it lit?"
    assert query_of("a cat", "Is {what} there? Say yes or no.").question == "Is a cat there? Say yes or no."
    with pytest.raises(UsageError, match="must have"):
        query_of("a cat", "Is a cat there?")
    with pytest.raises(UsageError, match="empty"):
        query_of("  ")


@pytest.mark.parametrize(("first", "stop"), [(37, 81), (40, 80), (0, 55), (60, 118), (45, 70), (0, 120), (79, 120)])
def test_what_lasts_begins_and_ends_at_its_frames(first: int, stop: int, tmp_path: Path) -> None:
    film = lamp(tmp_path / "lamp.mp4", [first <= number < stop for number in range(120)])
    (moment,) = moments(film, "Is it lit?", every_seconds=4.0)
    assert (moment["start_seconds"], moment["end_seconds"]) == pytest.approx((first / FPS, stop / FPS))
    assert moment["instant_seconds"] is None and moment["probability"] > 0.5


@pytest.mark.parametrize("instant", [1, 23, 40, 41, 79, 118])
def test_a_change_has_the_instant_of_its_frame(instant: int, tmp_path: Path) -> None:
    """Also where it falls between two windows of 40 frames."""
    film = lamp(tmp_path / "lamp.mp4", [number >= instant for number in range(120)])
    (moment,) = moments(film, "Is it turned on?", every_seconds=4.0)
    assert moment["instant_seconds"] == pytest.approx(instant / FPS)
    assert moment["start_seconds"] <= moment["instant_seconds"] < moment["end_seconds"]
    assert moment["end_seconds"] - moment["start_seconds"] <= 4.0 + 1e-9


def test_neighbouring_windows_have_changes_of_their_own(tmp_path: Path) -> None:
    film = lamp(tmp_path / "lamp.mp4", [15 <= number < 38 or number >= 60 for number in range(80)])
    found = moments(film, "Is it turned on?", every_seconds=4.0)
    assert sorted(moment["instant_seconds"] for moment in found) == pytest.approx([1.5, 6.0])


def test_what_no_single_frame_shows_is_found_to_a_part_of_a_window(tmp_path: Path) -> None:
    blinks = np.random.default_rng(0).random(160) < 0.5
    film = lamp(tmp_path / "lamp.mp4", [50 <= number < 110 and bool(blinks[number]) for number in range(160)])
    (moment,) = moments(film, "Does it blink?", every_seconds=2.0)
    assert moment["start_seconds"] == pytest.approx(5.0, abs=0.6)
    assert moment["end_seconds"] == pytest.approx(11.0, abs=0.6)


def test_a_cut_is_no_change(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", reason="the extra scenes is not installed")
    lit = [number >= 53 for number in range(120)]
    film = lamp(tmp_path / "cut.mp4", lit, [20] * 53 + [150] * 67)
    assert moments(film, "Is it turned on?", every_seconds=4.0) == []
    (moment,) = moments(film, "Is it lit?", every_seconds=4.0)
    assert (moment["start_seconds"], moment["end_seconds"]) == pytest.approx((5.3, 12.0))


def test_windows_are_read_once_for_all_queries_and_a_part_can_be_searched(tmp_path: Path) -> None:
    film, model = lamp(tmp_path / "lamp.mp4", [False] * 120), Seeing()
    preset = replace(PRESET, sampling=replace(PRESET.sampling, start_seconds=2.0, end_seconds=10.0))
    (record,) = find_moments(["Is it lit?", "Is it turned on?"], film, preset=preset, model=model, every_seconds=4.0)
    assert isinstance(record, Record) and record.values["moments"] == []
    assert [window["start_seconds"] for window in record.values["windows"]] == [2.0, 6.0]
    assert record.values["windows"][-1]["end_seconds"] == 10.0
    assert len(model.asked) == 4 and len(set(map(id, model.seen))) == 2
    assert record.values["usage"].keys() == USAGE.values().keys() and record.values["usage"]["prompt_tokens"] == 4


@pytest.fixture
def films(tmp_path: Path) -> Path:
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(4):
        lamp(folder / f"{number}.mp4", [20 + 5 * number <= place < 45 for place in range(60)])
    return folder


def test_a_run_that_is_ended_goes_on_and_asks_nothing_twice(films: Path, tmp_path: Path) -> None:
    (films / "words.mp4").write_text("no video")
    whole, ended = tmp_path / "whole.jsonl", tmp_path / "ended.jsonl"
    queries, model = ["Is it lit?", "Is it turned on?"], Seeing()
    first = find_moments(queries, films, whole, preset=PRESET, model=model)
    outcomes = list(first)
    failed = [each for each in outcomes if isinstance(each, Failure)]
    assert [Path(each.names["video_path"]).name for each in failed] == ["words.mp4"]
    for _ in range(4):
        with find_moments(queries, films, ended, preset=PRESET, model=Seeing()) as finding:
            for outcome in finding:
                if isinstance(outcome, Record):
                    break
        with ended.open("ab") as file:
            file.write(b'{"video_path": "torn')
    idle = Seeing()
    last = find_moments(queries, films, ended, preset=PRESET, model=idle)
    list(last)
    assert last.summary.done_before == 4 and last.summary.failed == 1 and idle.asked == []
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in (whole, ended)]
    by_path = [{row["video_path"]: row["moments"] for row in each} for each in rows]
    assert by_path[0] == by_path[1] and len(by_path[0]) == 4
    assert len(last.ranked()) == 8
    assert last.ranked() == first.ranked(), "in whatever order the videos were finished"
    order = [(-moment["probability"], moment["video_path"]) for moment in last.ranked()]
    assert order == sorted(order)
    other = find_moments(queries, films, ended, preset=PRESET, model=Seeing(), threshold=0.6)
    list(other)
    assert other.summary.done == 4, "another threshold is another search"
    again = find_moments(queries, films, ended, preset=PRESET, model=Seeing())
    list(again)
    assert again.ranked() == last.ranked(), "of the same file, without those of the other search"


class Shy(Seeing):
    """Is sure of a film only if its ground is bright; fails when it is asked a second time."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self._fails = fails

    def stream(self, request: Request) -> Iterator[Chunk]:
        if self._fails and self.asked:
            raise ModelError("it is gone")
        (chunk,) = super().stream(request)
        (medium,) = request.media
        assert isinstance(medium, Frames) and chunk.scores is not None
        most = float(medium.images[0, 0, 0, 0]) / 255
        yes = min(most, chunk.scores["Yes"])
        logprobs = {"Yes": float(np.log(yes)), "No": float(np.log(1 - yes))}
        yield replace(chunk, scores=Scores(logprobs, dict.fromkeys(logprobs, 1)))


def test_the_most_probable_moment_comes_first(tmp_path: Path) -> None:
    for name, ground in (("a", 150), ("b", 230), ("c", 180)):
        lamp(tmp_path / f"{name}.mp4", [5 <= number < 15 for number in range(20)], [ground] * 20)
    run = find_moments("Is it lit?", tmp_path, preset=PRESET, model=Shy(), every_seconds=2.0)
    list(run)
    assert [Path(moment["video_path"]).stem for moment in run.ranked()] == ["b", "c", "a"]


def test_a_model_that_fails_while_a_window_is_looked_into_is_the_reason(tmp_path: Path) -> None:
    film = lamp(tmp_path / "lamp.mp4", [5 <= number < 15 for number in range(20)], [230] * 20)
    (failure,) = find_moments("Is it lit?", film, preset=PRESET, model=Shy(fails=True), every_seconds=2.0)
    assert isinstance(failure, Failure) and str(failure.cause) == "it is gone"


class Killing(Seeing):
    """Kills its process at the next question, once it is told to."""

    is_armed = False

    def stream(self, request: Request) -> Iterator[Chunk]:
        if self.is_armed:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().stream(request)


def search_until_killed_twice(folder: str, output: str) -> None:
    """Search twice with a model that kills its process behind the first new record, or the second one."""
    for least in (1, 2):
        process = os.fork()
        if not process:
            model = Killing()
            for number, _ in enumerate(find_moments("Is it lit?", folder, output, preset=PRESET, model=model)):
                model.is_armed = True
                if number:
                    os.kill(os.getpid(), signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status == -signal.SIGKILL and len(Path(output).read_bytes().splitlines()) >= least


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_it_goes_on_to_the_same_file(films: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    list(find_moments("Is it lit?", films, whole, preset=PRESET, model=Seeing()))
    call = f"import test_find; test_find.search_until_killed_twice({str(films)!r}, {str(killed)!r})"
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", call], env=os.environ | {"PYTHONPATH": path}, timeout=60, check=True)
    last = find_moments("Is it lit?", films, killed, preset=PRESET, model=Seeing())
    list(last)
    assert last.summary.done_before >= 2 and last.summary.done + last.summary.done_before == 4
    assert sorted(killed.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_a_model_that_gives_no_probabilities_is_refused(films: Path) -> None:
    class Dumb(WaitingModel):
        @property
        def settings(self) -> dict[str, Any]:
            return {"model": "dumb", "versions": {}}

    with pytest.raises(ModelError, match="no probabilities"):
        list(find_moments("Is it lit?", films / "0.mp4", preset=PRESET, model=Dumb()))


def test_what_cuts_the_moments_out(films: Path, tmp_path: Path) -> None:
    finding = find_moments("Is it lit?", [films / "0.mp4", films / "1.mp4"], preset=PRESET, model=Seeing())
    list(finding)
    records = sorted(finding.records(), key=lambda record: record.path)
    for name in ("cuts.sh", "cuts.edl"):
        write_cuts(tmp_path / name, records)
    lines = (tmp_path / "cuts.sh").read_text().splitlines()[1:]
    assert lines[0].startswith("ffmpeg ") and "-ss 2.000000 -t 2.500000" in lines[0] and lines[0].endswith(" 0-1.mp4")
    edits = [line.split() for line in (tmp_path / "cuts.edl").read_text().splitlines() if line[:3].isdigit()]
    assert edits[0][4:] == ["00:00:02:00", "00:00:04:05", "00:00:00:00", "00:00:02:05"]
    assert edits[1][4:] == ["00:00:02:05", "00:00:04:05", "00:00:02:05", "00:00:04:05"]
    write_cuts(tmp_path / "cuts.srt", records[:1])
    (event,) = pysubs2.load(str(tmp_path / "cuts.srt")).events
    assert (event.start, event.end) == (2000, 4500) and event.text.startswith("Is it lit?")
    with pytest.raises(UsageError, match="one video"):
        write_cuts(tmp_path / "cuts.srt", records)
    with pytest.raises(UsageError, match=r"\.edl"):
        write_cuts(tmp_path / "cuts.txt", records)


def test_a_file_of_somebody_else_is_not_replaced_by_a_cut_list(tmp_path: Path) -> None:
    moment = {"query": "a", "start_seconds": 0.0, "end_seconds": 1.0, "probability": 0.9}
    for name, theirs in (("a.sh", "#!/bin/sh\nrm -r old\n"), ("a.edl", "TITLE: x\n"), ("a.srt", "1\n--> \nHello.\n")):
        path = tmp_path / name
        path.write_text(theirs)
        with pytest.raises(UsageError, match="was not written by `llvid find`"):
            check_cuts(path)
        check_cuts(path, overwrite=True)
        for moments in ([], [moment]):
            write_cuts(path, [Record({"video_path": "film.mp4", "moments": moments})])
            check_cuts(path)
    (tmp_path / "folder.sh").mkdir()
    with pytest.raises(UsageError, match="was not written by"):
        check_cuts(tmp_path / "folder.sh", overwrite=True)


def test_cuts_of_names_that_are_not_text(films: Path, tmp_path: Path) -> None:
    """Bytes that are not UTF-8, a protocol of ffmpeg's, an option, and a name as long as there can be."""
    film, names = next(films.glob("*0.mp4")), [b"\xff.mp4", b"concat:x.mp4", b"-y.mp4", b"x" * 251 + b".mp4"]
    paths, moment = [os.fsdecode(name) for name in names], {"start_seconds": 0.5, "end_seconds": 1.0}
    records = [Record({"video_path": path_to_text(path), "moments": [moment]}) for path in paths]
    write_cuts(tmp_path / "cuts.edl", records)
    write_cuts(tmp_path / "cuts.sh", records)
    for path in paths:
        (tmp_path / path).hardlink_to(film)
    (tmp_path / "ffmpeg").write_text('#!/bin/sh\ncp -- "$8" "$9"\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    found = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "cuts.sh"], cwd=tmp_path, env=found, check=True)
    assert b"./concat:x.mp4 ./concat:x-1.mp4" in (tmp_path / "cuts.sh").read_bytes()
    cut = {os.fsencode(path.name) for path in tmp_path.glob("*-1.mp4")}
    assert cut == {b"-1.mp4", b"concat:x-1.mp4", b"-y-1.mp4", b"x" * 200 + b"-1.mp4"}


def test_sheets_that_are_asked_for_later_are_made_of_the_records(films: Path, tmp_path: Path) -> None:
    once, later, sheets = tmp_path / "once", tmp_path / "moments.jsonl", tmp_path / "sheets"
    list(find_moments("Is it lit?", films, tmp_path / "once.jsonl", preset=PRESET, model=Seeing(), sheets=once))
    assert list(find_moments("Is it lit?", films, later, preset=PRESET, model=Seeing()))
    run = find_moments("Is it lit?", films, later, preset=PRESET, model=Seeing(), sheets=sheets)
    assert not any(isinstance(outcome, Record) for outcome in run), "nothing is searched again"
    wanted = {sheet.name: sheet.read_bytes() for sheet in once.iterdir()}
    assert wanted and {sheet.name: sheet.read_bytes() for sheet in sheets.iterdir()} == wanted
    assert {Path(moment["sheet"]) for moment in run.ranked()} == set(sheets.iterdir())


def test_sheets_of_names_as_long_as_file_systems_allow(films: Path, tmp_path: Path) -> None:
    film = next(films.glob("*0.mp4"))
    longest = film.rename(tmp_path / f"{'ü' * 125}b.mp4")
    assert len(longest.name.encode()) == 255
    output, sheets = tmp_path / "moments.jsonl", tmp_path / "sheets"
    list(find_moments("Is it lit?", [longest], output, preset=PRESET, model=Seeing(), sheets=sheets))
    assert all(sheet.name.startswith("ü" * 100 + "-") for sheet in sheets.iterdir()) and any(sheets.iterdir())


def test_the_report_has_a_row_for_each_moment(films: Path, tmp_path: Path) -> None:
    output = tmp_path / "moments.jsonl"
    lamp(films / "dark.mp4", [False] * 50)
    list(find_moments("Is it lit?", films, output, preset=PRESET, model=Seeing(), sheets=tmp_path / "sheets"))
    rows = list(open_results(output))
    assert len(rows) == 5 and len(list((tmp_path / "sheets").glob("*.png"))) == 4
    first = next(row for row in rows if row.video.endswith("0.mp4"))
    assert first.question == "Is it lit?" and first.scores["yes"] > 0.5 and first.text == "0:02-0:04"
    assert first.settings["sampling"]["start_seconds"] == 2.0
    assert next(row for row in rows if row.video.endswith("dark.mp4")).text == "no moment was found"


def demo_scenes(count: int, rng: np.random.Generator, every_third: bool = True) -> list[Scene]:
    """Scenes of 2 seconds or more, in a third of which a triangle turns blue."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, longest_seconds=5.0)
        is_wanted = holds("a triangle turns blue", scene)
        if scene.duration_seconds >= 2 and (is_wanted == (every_third and len(scenes) % 3 == 1)):
            scenes.append(replace(scene, width=128, height=96, frames_per_second=DEMO_FPS))
    return scenes


def check_demo_film(path: Path, scenes: Sequence[Scene]) -> None:
    """Precision and recall of at least 95 %, cuts and instants within two frames, each instant in its moment."""
    write_film(path, (image for scene in scenes for image in frames(scene)), DEMO_FPS)
    (record,) = find_moments(
        "a triangle turns blue", path, preset=load_preset("demo"), model=open_model("demo", Loading(device="cpu")),
        every_seconds="scene",
    )  # fmt: skip
    assert isinstance(record, Record), record
    ends = np.cumsum([scene.frame_count for scene in scenes])
    true = [
        (end - scene.frame_count, end, end - scene.frame_count + int(np.ceil(scene.change_at * scene.frame_count)))
        for scene, end in zip(scenes, ends, strict=True)
        if holds("a triangle turns blue", scene)
    ]
    found = [
        tuple(round(moment[f"{name}_seconds"] * DEMO_FPS) for name in ("start", "end", "instant"))
        for moment in record.values["moments"]
    ]
    right = [each for each in found if any(np.abs(np.subtract(each, one)).max() <= 2 for one in true)]
    assert len(right) >= 0.95 * len(found) and len(right) >= 0.95 * len(true), (found, true)
    assert all(start <= instant < end for start, end, instant in found)


def test_a_triangle_turns_blue(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", reason="the extra scenes is not installed")
    check_demo_film(tmp_path / "film.mp4", demo_scenes(4, np.random.default_rng(3)))


@pytest.mark.slow
def test_a_triangle_turns_blue_in_a_film_of_sixty_scenes(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", reason="the extra scenes is not installed")
    check_demo_film(tmp_path / "film.mp4", demo_scenes(60, np.random.default_rng(4)))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = demo_scenes(2, np.random.default_rng(5))
    film = write_film(tmp_path / "film.mp4", frames(scenes[1]), DEMO_FPS)
    output, cuts = tmp_path / "moments.jsonl", tmp_path / "cuts.sh"
    arguments = ["find", "a triangle turns blue", str(film), "-m", "demo", "--every", "8", "-o", str(output)]
    assert run([*arguments, "--cuts", str(cuts)]) == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert str(film) in line and " at 0:0" in line
    assert "asking: In the video, a triangle turns blue. Yes or no?" in err and "1 searched" in err
    assert str(film) in cuts.read_text()
    assert run([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    (moment,) = map(json.loads, out.splitlines())
    assert moment["query"] == "a triangle turns blue" and "1 done before" in err
    for wrong, message in (
        (["--threshold", "2"], "between 0 and 1"), (["--cuts", "x.txt"], ".sh"), (["-o", "x.csv"], ".jsonl"),
        (["--template", "Is it there?"], "{what}"), (["--source-fps", "2"], "--source-fps is for pictures"),
    ):  # fmt: skip
        assert run(["find", "a circle", str(film), "-m", "demo", *wrong]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "a.sh").mkdir()
    for wrong, code, message in (  # told before anything is read
        ([str(film), "--cuts", str(tmp_path / "a.srt")], 2, "subtitles are of one video, and there are 2"),
        (["--cuts", str(tmp_path / "gone" / "a.sh")], 1, "there is no folder"),
        (["--cuts", str(tmp_path / "a.sh")], 2, "a.sh was not written by"),
    ):
        (tmp_path / "broken.mp4").touch()
        assert run(["find", "a circle", str(tmp_path / "broken.mp4"), "-m", "demo", *wrong]) == code
        (error, *_) = capsys.readouterr().err.splitlines()
        assert message in error


def test_a_picture_has_no_moments(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "still.png")
    (failure,) = find_moments("Is it lit?", tmp_path / "still.png", preset=PRESET, model=Seeing())
    assert isinstance(failure, Failure) and "is a picture" in str(failure.cause)
