"""Videos of hours: what is asked of each window, how notes are put together, and what comes out, whatever fails."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from terminal import QUESTION, asked, llvid, scene
from test_answers import USAGE, Echo

from llava_video_cli import (
    Answer,
    Budget,
    Chunk,
    ContextError,
    Frames,
    Generation,
    Request,
    Sampling,
    Segment,
    Usage,
    UsageError,
)
from llava_video_cli.demo.world import write_clip as write_scene
from llava_video_cli.demo.world import write_picture
from llava_video_cli.preset import Preset
from llava_video_cli.prompt.subtitles import Subtitles
from llava_video_cli.runs.record import CutNote, join_frames, total_usage
from llava_video_cli.runs.windows import WindowAnswers, answer_windows, conclude, relevant, windows_note, windows_values
from llava_video_cli.video import inspect, read_frames

PRESET = Preset("p", "", sampling=Sampling(2), generation=Generation(max_new_tokens=300))
ASKS = ("Who {is} it?", "Why?")


@dataclass
class Watcher(Echo):
    """Says of a window when its first frame is, of several notes which times they have; a token is a character."""

    context: int = 4000
    summary: str = ""

    def answer(self, request: Request) -> str:
        text = request.turns[-1].text
        if not request.media:
            return self.summary or "+".join(re.findall(r"^\[(.+?)\]", text, re.MULTILINE))
        (frames,) = request.media
        assert isinstance(frames, Frames)
        return f"{text.split(': ', 1)[1].splitlines()[0]} {frames.times_seconds[0]:.1f}"

    def stream(self, request: Request) -> Iterator[Chunk]:
        if self.budget(request).left < 0:
            raise ContextError("too long")
        text = request.turns[-1].text
        self.check(text)
        assert not request.media or request.generation.max_new_tokens == 128
        self.asked.append(text)
        yield Chunk(self.answer(request)[:3])
        yield Chunk(self.answer(request)[3:], "stop", USAGE)

    def budget(self, request: Request) -> Budget:
        return Budget(sum(len(turn.text) for turn in request.turns), request.generation.max_new_tokens, self.context)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_scene(path, scene(duration_seconds=12.0, travel=0.3))
    return path


def notes(count: int, length: int = 40) -> list[Segment]:
    return [Segment(60.0 * n, 60.0 * n + 60, f"{n} ".ljust(length, "x")) for n in range(count)]


def test_each_window_is_read_once_and_asked_each_question(film: Path) -> None:
    video, model = inspect(film), Watcher()
    windows = video.windows(1.0, PRESET.sampling)
    found = sorted(answer_windows(video, windows, ASKS, PRESET, model), key=lambda each: each.start_seconds)
    assert [(each.start_seconds, each.end_seconds) for each in found] == [(n, n + 1) for n in range(12)]
    for number, question in enumerate(ASKS):
        texts = [each.segment(number).text for each in found]
        assert texts == [f"{question} {n}.0" for n in range(12)]
    prompts = model.asked
    assert len(prompts) == 24 and all("say only: nothing" in text for text in prompts)
    for start, window in enumerate(windows):
        assert (window.start_seconds, window.end_seconds) == (start, start + 1)
        assert (video.read(window).images == read_frames(film, window).images).all()


def test_windows_are_told_times_and_what_is_spoken_in_them(film: Path) -> None:
    preset = Preset("p", "", system="Be brief.", timestamps=True, sampling=Sampling(2))
    said = Subtitles("s.srt", (Segment(0.2, 0.4, "hello"), Segment(6.5, 6.9, "bye")))
    model = Watcher(context=9000)
    video = inspect(film)
    answers = answer_windows(video, video.windows(6.0, preset.sampling), ["Who?"], preset, model, said)
    found = sorted(answers, key=lambda s: s.start_seconds)
    first, second = sorted(model.asked)
    assert "shown by 2 frames, at 0.00s, 3.00s.\nIts subtitles" in first and "0.2s: hello\n" in first
    assert "at 6.00s, 9.00s." in second and "6.5s: bye" in second and "hello" not in second
    assert [each.lines and each.lines.used for each in found] == [1, 1]


def test_notes_that_fit_are_answered_from_at_once() -> None:
    model = Watcher()
    chunks = list(conclude("Who {is} it?", notes(3), PRESET, model))
    (prompt,) = model.asked
    assert prompt.splitlines()[1].startswith("[0:00-1:00] 0 xx") and prompt.endswith("notes alone: Who {is} it?")
    assert "".join(chunk.text for chunk in chunks) == "0:00-1:00+1:00-2:00+2:00-3:00"
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == 1 and chunks[0].usage is None


@pytest.mark.parametrize(("count", "context"), [(40, 1000), (500, 1500), (3000, 1200)])
def test_notes_that_do_not_fit_are_summed_up_in_levels(count: int, context: int) -> None:
    model = Watcher(context=context, summary="y" * 40)
    chunks = list(conclude("Why?", notes(count), PRESET, model))
    *told, last = model.asked
    assert all("Sum up" in text for text in told) and last.endswith("Answer from these notes alone: Why?")
    times = re.findall(r"^\[(.+?)-(.+?)\]", last, re.MULTILINE)
    assert times[0][0] == "0:00" and all(a[1] == b[0] for a, b in pairwise(times)), "no gap"
    firsts = re.findall(r"^\[\S+\] (\d+) x", "".join(told) + last, re.MULTILINE)
    assert sorted(map(int, firsts)) == list(range(count)), "each note is used once"
    assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens == len(told) + 1


def test_what_can_never_fit_is_an_error_and_no_endless_loop(film: Path) -> None:
    with pytest.raises(ContextError):
        list(conclude("Why?", notes(5, length=900), PRESET, Watcher(context=1000)))
    model = Watcher(context=300)
    with pytest.raises(ContextError, match="but the context of echo has 300"):
        next(answer_windows(inspect(film), inspect(film).windows(6.0, Sampling()), ["Why?"], PRESET, model))
    assert not model.asked, "before anything is asked"


def test_a_window_that_fails_fails_the_whole(film: Path) -> None:
    video = inspect(film)
    windows = video.windows(1.0, PRESET.sampling)

    def refuse(_: str) -> None:
        raise ContextError("too many frames")

    with pytest.raises(ContextError, match="too many frames"):
        list(answer_windows(video, windows, ASKS, PRESET, Watcher(refuse)))
    with pytest.raises(UsageError, match="12,000 windows are too many"):
        next(answer_windows(video, video.windows(0.001, PRESET.sampling), ASKS, PRESET, Watcher()))


def test_windows_without_anything_are_left_out_and_the_others_named() -> None:
    seen = [
        Segment(n, n + 1, text) for n, text in enumerate(("Nothing.", "a cat", "a dog", "nothing", "nothing at all"))
    ]
    used = relevant(seen)
    assert [each.text for each in used] == ["a cat", "a dog", "nothing at all"]
    assert windows_note(used, 5) == "answered from 3 of 5 windows: 0:01-0:03, 0:04-0:05"
    assert relevant(seen[:1]) == seen[:1]
    assert windows_note(seen[1:2], 1) == "answered from 1 window: 0:01-0:02"
    many = windows_note(seen[::2] * 20, 99)
    assert many.endswith(", 40 more") and many.count("-") == 20


def test_the_record_has_the_windows_and_all_that_they_cost() -> None:
    values = {
        "path": "v.mp4", "notes": ["short"],
        "frames": {"count": 1, "times_seconds": [0.0], "sampling": "uniform", "duration_seconds": 2.0},
    }  # fmt: skip
    answers = (Answer("a  cat", "stop", USAGE),)
    parts = [WindowAnswers(n, n + 1, values, None, answers) for n in range(2)]
    row = windows_values(parts, 0, "Why?", Answer("So.", "length", USAGE), 5.0, {"model": "m"})
    assert row["segments"] == [{"start_seconds": n, "end_seconds": n + 1, "text": "a cat"} for n in range(2)]
    assert (row["video"], row["question"], row["answer"], row["finish_reason"]) == ("v.mp4", "Why?", "So.", "length")
    assert row["frames"]["count"] == 2 and row["notes"] == ["short", "answered from 2 of 2 windows: 0:00-0:02"]
    assert row["usage"]["prompt_tokens"] == 3 and row["usage"]["total_seconds"] == 5.0


def test_the_real_path(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, str(film), QUESTION, "Which way does it move?", "--windows", "2", "-n", "4")
    assert code == 0 and len(out.splitlines()) == 2 and all(out.splitlines())
    assert err == "answered from 6 of 6 windows: 0:00-0:12\n" * 2
    code, out, err = asked(
        capsys, str(film), QUESTION, "--windows", "2", "-n", "4", "--start", "1", "--timestamps", "--json", "-q"
    )
    row: dict[str, Any] = json.loads(out)
    assert (code, err) == (0, "") and row["question"] == QUESTION and row["answer"]
    assert [part["start_seconds"] for part in row["segments"]] == [1, 3, 5, 7, 9, 11] and row["segments"][0]["text"]
    assert row["frames"]["count"] == 24 and row["frames"]["times_seconds"] == sorted(row["frames"]["times_seconds"])
    assert row["settings"]["windows_seconds"] == 2 and row["settings"]["timestamps"] is True
    assert row["usage"]["prompt_tokens"] > 6 * 36 and row["usage"]["first_token_seconds"] > 0


def test_the_cost_of_windows_is_added_up_but_for_the_first_token_and_the_peak() -> None:
    first = Usage(10, 4, 3, 0.5, 1.0, 70, media_tokens=(8, 2), thinking_tokens=1)
    second = Usage(20, 8, 5, 9.0, 2.0, 90, media_tokens=(6, 1), thinking_tokens=2)
    assert total_usage([first, second]) == Usage(30, 12, 8, 0.5, 3.0, 90, media_tokens=(14, 3), thinking_tokens=3)
    assert total_usage([second, first]).peak_memory_bytes == 90


def test_frames_of_windows_are_joined_in_order() -> None:
    parts = [{"count": 2, "times_seconds": [0.0, 1.0], "shots": [[0, 1]]}, None, {"count": 1, "times_seconds": [2.0]}]
    joined = {"count": 3, "times_seconds": [0.0, 1.0, 2.0], "shots": [[0, 1]]}
    assert join_frames(parts) == joined and join_frames(parts, 100) == {**joined, "tokens_each": 33.33}
    assert join_frames([None, None]) is None


def test_a_cut_is_told_once_and_with_the_least_share() -> None:
    note = CutNote()
    assert note.lines(None, {"visible_share": 0.9}, {"visible_share": None}, {}) == []
    assert note.lines({"visible_share": 0.749}, {"visible_share": 0.556}, None) == [
        "the model sees the middle 56 % of each frame; --fit pad shows it all"
    ]
    assert note.lines({"visible_share": 0.1}) == []


def test_what_makes_no_sense(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "p.png", scene())
    (tmp_path / "bad.mp4").write_text("no")
    for arguments, code, words in (
        ([str(film), "q", "--windows", "0"], 2, "--windows"), ([str(film), "q", "--windows", "-3"], 2, "--windows"),
        ([str(film), "q", "--windows", "x"], 2, "--windows"),
        ([str(tmp_path / "p.png"), "q", "--windows", "1"], 1, "is a picture"),
        ([str(film), "q", "--windows", "1", "--with", str(film)], 2, "exactly one video"),
        ([str(tmp_path / "bad.mp4"), "q", "--windows", "1"], 1, "not a video"),
        ([str(film), "q", "--windows", "0.01", "--start", "0", "--fps", "1e9"], 1, "frames per second"),
        ([str(film), "q", "--windows", "5", "--start", "99"], 1, "past the end"),
        ([str(film), "q", "--windows", "5", "--max-new-tokens", "5000"], 1, "the answer up to 5,000"),
    ):  # fmt: skip
        found, out, err = asked(capsys, *arguments)
        assert (found, out) == (code, "") and err.startswith("error: ") and words in err, (arguments, err)


@pytest.mark.slow
def test_ctrl_c_is_clean(film: Path) -> None:
    command = [sys.executable, "-m", "llava_video_cli", "ask", str(film), QUESTION, "-m", "demo", "--windows", "0.01"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err and time.monotonic() - began < 30
    assert llvid("ask", str(film), QUESTION, "-m", "demo", "--windows", "6", "-q").returncode == 0
