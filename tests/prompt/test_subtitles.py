"""Subtitles: three formats to lines, strangers' text and broken files, and as many lines as a prompt has room for."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from terminal import QUESTION, asked
from transformers import AutoTokenizer

from llava_video_cli import (
    Budget,
    Frames,
    Generation,
    MediaError,
    Request,
    Sampling,
    Segment,
    Turn,
    VideoInfo,
    load_preset,
    open_model,
)  # fmt: skip
from llava_video_cli.cli.app import run
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.preset import Preset
from llava_video_cli.prompt.subtitles import (
    LineCount,
    Subtitles,
    find_subtitles,
    largest,
    notes_of,
    read_subtitles,
    read_track,
    thinned,
    with_speech,
)
from llava_video_cli.runs.caption import Task
from llava_video_cli.speech import SpokenSegment
from llava_video_cli.speech.transcripts import Transcript

SRT = """1
00:00:00,500 --> 00:00:00,900
<i>Hello</i> <font color="red">there</font>, you
{\\an8}and you

2
00:01:03,000 --> 00:01:04,000
\x1b[31m<|im_end|> a < b\x9b\x07

3
00:00:01,200 --> 00:00:01,200
last, but
"""
VTT = """WEBVTT

NOTE not spoken

STYLE
::cue { color: red }

id
00:01.000 --> 00:02.500 align:start
<v Bob>Hello <c.yellow>there</c> &amp; &lt;video&gt;

01:00:00.000 --> 01:00:01.000
late
"""
ASS = """[Script Info]
ScriptType: v4.00+

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,{\\i1}Hello{\\i0}, you\\Ntwo
Comment: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,not spoken
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,{\\p1}m 0 0 l 100 0{\\p0}
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_text(text, encoding=encoding)
    return str(path)


def video(start: float = 0.0, end: float | None = None, seconds: float = 100.0) -> Frames:
    info = VideoInfo("v.mp4", seconds, 2, 2, 25.0, "h264", 0)
    return Frames(np.zeros((1, 2, 2, 3), np.uint8), (start,), info, Sampling(1, None, start, end))


def spoken(count: int) -> Subtitles:
    return Subtitles("s.srt", tuple(Segment(float(n), n + 0.9, f"line {n}") for n in range(count)))


def told_of(request: Request) -> list[str]:
    return request.turns[-1].text.splitlines()


def test_three_formats(tmp_path: Path) -> None:
    assert read_subtitles(write(tmp_path / "a.srt", SRT, "utf-8-sig")).lines == (
        Segment(0.5, 0.9, "Hello there, you and you"),
        Segment(1.2, 1.2, "last, but"),
        Segment(63.0, 64.0, "[31m<|im_end|> a < b"),
    )
    assert read_subtitles(write(tmp_path / "a.vtt", VTT)).lines == (
        Segment(1.0, 2.5, "Hello there & <video>"),
        Segment(3600.0, 3601.0, "late"),
    )
    assert read_subtitles(write(tmp_path / "a.ass", ASS)).lines == (Segment(1.0, 2.0, "Hello, you two"),)
    assert read_subtitles(write(tmp_path / "odd name.srt", SRT.replace("\n", "\r\n"))).lines[0].text.endswith("and you")


def test_a_nul_ends_neither_the_file_nor_a_line(tmp_path: Path) -> None:
    cues = [f"{n}\n00:00:0{n},000 --> 00:00:0{n},500\nline {n}\n" for n in range(1, 5)]
    for broken in range(4):
        text = "\n".join(cue.replace("ne", "n\0e") if n == broken else cue for n, cue in enumerate(cues))
        lines = read_subtitles(write(tmp_path / "a.srt", text)).lines
        assert [line.text for line in lines] == ["line 1", "line 2", "line 3", "line 4"]


def test_a_line_that_is_cut_is_told(tmp_path: Path) -> None:
    lengths = (500, 501, 20, 10_000)
    cues = (f"{n}\n00:00:{n:02},000 --> 00:00:{n:02},500\n{'x' * length}\n" for n, length in enumerate(lengths))
    subtitles = read_subtitles(write(tmp_path / "a.srt", "\n".join(cues)))
    whole, cut, short, _ = (line.text for line in subtitles.lines)
    assert (whole, cut, short) == ("x" * 500, "x" * 499 + "…", "x" * 20)

    def noted(part: Frames, said: Subtitles | None) -> list[str]:
        def count(request: Request) -> Budget:
            return Budget(0, request.generation.max_new_tokens, 10_000)

        return notes_of([Preset("p", "").requests(("Why?",), (part,), said, count)[1]])

    one = ["1 subtitle line is longer than 500 characters; only the beginning is used"]
    assert noted(video(0, 3), subtitles) == one and not noted(video(2, 3), subtitles)
    assert noted(video(0, 9), subtitles)[0].startswith("2 subtitle lines are longer")
    heard = Transcript((SpokenSegment(0.0, 9.0, "word " * 101, "en"),)).lines("a.mp4").lines
    spoken_of = replace(video(), speech=tuple((each.start_seconds, each.end_seconds, each.text) for each in heard))
    assert noted(spoken_of, None) == one


def test_a_video_that_is_sent_twice_has_its_lines_once_in_each_place() -> None:
    said = replace(video(), speech=((0.0, 1.0, "one"), (1.0, 2.0, "two")))
    asked = with_speech((Turn("user", "What?", (said,)), Turn("assistant", "A."), Turn("user", "Why?", (said,))), 4)
    lines = "subtitles, each line at the time when it is spoken:\n0.0s: one\n1.0s: two\n"
    assert [turn.text for turn in asked] == [f"Video 1's {lines}What?", "A.", f"Video 2's {lines}Why?"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_says_itself_what_it_is(tmp_path: Path, encoding: str) -> None:
    text = SRT.replace("Hello", "Señor 你好 🙂")
    path = write(tmp_path / "a.srt", "\ufeff" + text, encoding)
    assert read_subtitles(path).lines == read_subtitles(write(tmp_path / "b.srt", text)).lines
    (tmp_path / "a.srt").write_bytes((tmp_path / "a.srt").read_bytes()[:-1])
    with pytest.raises(MediaError, match=r"a\.srt: broken UTF-16 text"):
        read_subtitles(path)


def test_the_hint_for_other_encodings_names_no_single_one(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes("1\n00:00:01,000 --> 00:00:02,000\nПривет\n".encode("cp1251"))
    with pytest.raises(MediaError) as caught:
        read_subtitles(str(path))
    assert caught.value.hint is not None
    assert all(word in caught.value.hint for word in ("if you know", "WINDOWS-1252", "CP1251", "SHIFT-JIS"))


def test_what_is_none_is_one_clear_error(tmp_path: Path, clip: Path) -> None:
    latin = tmp_path / "latin.srt"
    latin.write_bytes(SRT.replace("Hello", "Señor").encode("cp1252", "replace"))
    huge = tmp_path / "huge.srt"
    with huge.open("wb") as file:
        file.truncate(2**30)
    playlist = write(tmp_path / "list.srt", f"ffconcat version 1.0\nfile {clip}\n")
    for path, words in (
        (str(tmp_path / "no.srt"), "no such file"), (str(tmp_path), "a folder, not a file of subtitles"),
        (str(latin), "not UTF-8 text"), (str(huge), "1024 MiB is too large"), (playlist, "not a .srt"),
        (write(tmp_path / "words.srt", "hello\n"), "not a .srt"), (str(clip), "not UTF-8 text"),
        (write(tmp_path / "none.vtt", "WEBVTT\n\nNOTE nothing\n"), "no subtitle lines"),
        (write(tmp_path / "empty.srt", ""), "the file is empty"),
    ):  # fmt: skip
        with pytest.raises(MediaError) as caught:
            read_subtitles(path)
        assert words in str(caught.value) and str(caught.value).startswith(path)


def test_a_line_without_end_costs_no_time(tmp_path: Path) -> None:
    """Override blocks that never close, and one line of megabytes."""
    text = f"1\n00:00:01,000 --> 00:00:02,000\n{'{a' * 500_000}\n\n2\n00:00:03,000 --> 00:00:04,000\n{'x ' * 10**6}\n"
    began = time.monotonic()
    lines = read_subtitles(write(tmp_path / "a.srt", text)).lines
    assert time.monotonic() - began < 20
    assert [line.start_seconds for line in lines] == [1, 3] and all(0 < len(line.text) <= 500 for line in lines)


def test_a_line_that_ends_before_it_starts_is_one_of_its_moment(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:05,000 --> 00:00:02,000\nHello\n")
    read = read_subtitles(str(tmp_path / "a.srt"))
    assert read.between(3, 8) == read.lines and read.lines[0].end_seconds == 5


def test_the_lines_of_a_part() -> None:
    lines = (Segment(0, 50, "long"), Segment(1, 2, "a"), Segment(3, 3, "b"), Segment(9, 11, "c"))
    between = Subtitles("s.srt", lines).between
    texts = {part: "".join(line.text[0] for line in between(*part)) for part in ((0, 2), (2, 3), (3, 10), (11, 60))}
    assert texts == {(0, 2): "la", (2, 3): "l", (3, 10): "lbc", (11, 60): "l"}


def test_what_fits_is_spread_evenly_and_told() -> None:
    preset = Preset("p", "", generation=Generation(max_new_tokens=50))
    asks = ("Why?", "And who is the one in the middle?")

    def counting(context: int) -> tuple[list[str], list[str], LineCount]:
        def count(request: Request) -> Budget:
            return Budget(len(request.turns[-1].text), request.generation.max_new_tokens, context)

        (first, second), heard = preset.requests(asks, (video(10, 60),), spoken(100), count)
        assert heard is not None and count(second).left >= 0 and count(first).left >= 0
        return told_of(first), told_of(second), heard

    first, second, heard = counting(10_000)
    assert heard == LineCount(50, 50) and not notes_of([heard]) and first[1] == "10.0s: line 10" and first[-1] == "Why?"
    assert first[:-1] == second[:-1], "a common beginning"
    first, _, heard = counting(500)
    assert 15 < heard.used < 40 and len(first) == heard.used + 2
    times = [float(line.split("s:")[0]) for line in first[1:-1]]
    gaps = {b - a for a, b in pairwise(times)}
    assert times[0] == 10 and gaps <= {1.0, 2.0, 3.0} and times[-1] > 55
    assert notes_of([heard, heard]) == [
        f"only {2 * heard.used} of 100 subtitle lines fit the context; they are spread evenly"
    ]
    first, _, heard = counting(90)
    assert first == ["Why?"] and heard == LineCount(0, 50)
    assert notes_of([LineCount(0, 0), LineCount(0, 0)]) == ["the subtitles have no lines in this part"]
    assert not notes_of([None])


@pytest.mark.parametrize("most", [0, 1, 5, 16, 17, 100, 1000])
def test_the_largest_that_fits_is_found(most: int) -> None:
    for wanted in {0, 1, 2, 15, 16, 17, 31, 32, 33, 99, 100, most}:
        tried: list[int] = []

        def fits(count: int, wanted: int = wanted, tried: list[int] = tried) -> bool:
            tried.append(count)
            return count <= wanted

        assert largest(fits, most) == min(wanted, most)
        assert max(tried, default=0) <= max(16, 2 * wanted)
    assert thinned(spoken(4).lines, 0) == () and thinned(spoken(4).lines, 4) == spoken(4).lines


def test_a_strangers_text_confuses_no_placeholder() -> None:
    """Every special token of the demo checkpoint, and both placeholders, as a line."""
    model = open_model("demo")
    tokens = ["<image>", "<video>", *AutoTokenizer.from_pretrained(CHECKPOINT).all_special_tokens]
    lines = tuple(Segment(n, n + 1, f"say {token} now") for n, token in enumerate(tokens))
    preset = load_preset("demo")
    frames = video()
    (request,), heard = preset.requests((QUESTION,), (frames,), Subtitles("s.srt", lines), model.budget)
    plain = model.budget(preset.request(QUESTION, (frames,)))
    assert heard == LineCount(len(tokens), len(tokens))
    assert model.budget(request).media_tokens == plain.media_tokens and len(request.media) == 1
    assert list(model.stream(request))[-1].finish_reason, "as many features as places"


def test_ask_takes_the_file_beside_the_video(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = tmp_path / "clip.mp4"
    here.hardlink_to(clip)
    code, _, err = asked(capsys, str(here), QUESTION, "--subtitles", "auto")
    assert code == 1 and "no subtitles in it or next to it\nhint: there is no clip.srt, clip.vtt or clip.ass" in err
    write(tmp_path / "clip.srt", SRT)
    assert find_subtitles(str(here)).path == str(tmp_path / "clip.srt")
    _, out, _ = asked(capsys, str(here), QUESTION, "--json")
    plain = json.loads(out)
    code, out, err = asked(capsys, str(here), QUESTION, "--subtitles", "auto", "--json")
    row = json.loads(out)
    assert (code, err) == (0, "") and row["question"] == QUESTION and row["answer"] and not row["notes"]
    assert row["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 10
    assert row["settings"]["subtitles"] == str(tmp_path / "clip.srt") and "subtitles" not in plain["settings"]
    code, out, err = asked(capsys, str(here), QUESTION, "--subtitles", str(tmp_path / "clip.srt"), "--start", "1.5")
    assert code == 0 and err.endswith("the subtitles have no lines in this part\n")
    cues = [f"{n}\n00:00:01,{n % 1000:03d} --> 00:00:01,999\nHello there, line {n}\n\n" for n in range(2000)]
    write(tmp_path / "long.srt", "".join(cues))
    code, out, err = asked(capsys, str(here), QUESTION, "--subtitles", str(tmp_path / "long.srt"), "--json")
    assert code == 0 and "subtitle lines fit the context; they are spread evenly" in err
    row = json.loads(out)
    assert row["notes"] == [err.strip()] and row["usage"]["prompt_tokens"] <= 4096 - 48


def test_the_pictures_of_a_folder_have_the_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    Image.new("RGB", (48, 48)).save(folder / "1.png")
    monkeypatch.chdir(folder)
    code, _, err = asked(capsys, ".", QUESTION, "--subtitles", "auto")
    assert code == 1 and "no subtitles in it or next to it\nhint: there is no frames.srt, frames.vtt" in err
    code, _, err = asked(capsys, ".", QUESTION, "--subtitles", "track")
    assert code == 1 and "no subtitle track in it" in err
    write(tmp_path / "frames.srt", SRT)
    assert find_subtitles(".").path == str(tmp_path / "frames.srt")


def test_captions_with_subtitles(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = write(tmp_path / "s.srt", SRT)
    out = tmp_path / "o.jsonl"
    command = ["caption", str(clip), "-m", "demo", "-o", str(out), "-n", "2"]
    assert run([*command, "--every", "1", "--subtitles", said]) == 0
    row = json.loads(out.read_text())
    assert row["prompt"] == "Describe the video." and row["settings"]["subtitles"] == said and row["notes"] == []
    assert run([*command, "--every", "1", "--subtitles", said]) == 0
    assert capsys.readouterr().err == "1 captioned\n0 captioned, 1 done before\n"
    write(tmp_path / "s.srt", SRT.replace("Hello", "Bye"))
    assert run([*command, "--every", "1", "--subtitles", said]) == 0
    assert capsys.readouterr().err == "1 captioned\n", "other words make another caption"
    for more in ((), ("--every", "1"), ("--every", "1", "--start", "1.5")):
        assert run(["caption", str(clip), "-m", "demo", "--subtitles", said, *more]) == 0
    assert capsys.readouterr().err == "the subtitles have no lines in this part\n"
    assert Task(Preset("a", "")).fingerprint != Task(Preset("a", ""), subtitles=spoken(1)).fingerprint


def test_subtitles_are_for_one_video(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from terminal import scene

    from llava_video_cli.demo.world import write_picture

    write_picture(tmp_path / "p.png", scene())
    said = write(tmp_path / "s.srt", SRT)
    for arguments, code, words in (
        (["ask", str(clip), "q", "--with", str(tmp_path / "p.png")], 2, "exactly one video"),
        (["ask", str(tmp_path / "p.png"), "q"], 1, "is a picture"), (["ask", "no.mp4", "q"], 1, "no such file"),
        (["caption", str(tmp_path)], 2, "exactly one"), (["caption", str(clip), str(clip)], 2, "exactly one video"),
    ):  # fmt: skip
        assert run([*arguments, "-m", "demo", "--subtitles", said]) == code
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and words in err


@pytest.mark.parametrize("command", [["ask"], ["caption"]])
def test_an_empty_name_is_told(clip: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert run([*command, str(clip), "-m", "demo", "--subtitles", ""]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "error: --subtitles is empty\n" in err


HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def with_track(path: Path, *tracks: tuple[str, str, bytes]) -> Path:
    """Write a video whose first picture is at 1 s, with tracks: codec, language, and what is said at 2 s."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        streams: list[Any] = [container.add_stream(codec) for codec, _, _ in tracks]
        for stream, (_, language, _) in zip(streams, tracks, strict=True):
            stream.metadata["language"] = language
            stream.codec_context.subtitle_header = HEADER
        frame = av.VideoFrame(96, 64, "yuv420p")
        frame.pts = 24
        container.mux([*video.encode(frame), *video.encode(None)])
        for stream, (_, _, content) in zip(streams, tracks, strict=True):
            packet = av.Packet(content)
            packet.stream, packet.pts, packet.dts, packet.duration = stream, 2000, 2000, 1000
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    return path


def test_tracks_in_the_video(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = with_track(tmp_path / "film.mkv", ("srt", "ger", b"<i>Hallo</i>"), ("srt", "eng", b"Hello"))
    hello = Segment(1.0, 2.0, "Hello")
    assert read_track(str(film), "eng") == Subtitles(str(film), (hello,)), "on the clock of the frames"
    german = read_track(str(film))
    assert german is not None and [line.text for line in german.lines] == ["Hallo"]
    assert read_track(str(with_track(tmp_path / "film.mp4", ("mov_text", "eng", b"\0\5Hello")))) is not None
    assert find_subtitles(str(film)) == german and read_track(str(clip)) is None
    with pytest.raises(MediaError, match="no subtitle track in 'fre'") as caught:
        read_track(str(film), "fre")
    assert caught.value.hint == "its tracks are in ger, eng"
    pictures = with_track(tmp_path / "film.ts", ("dvbsub", "eng", b"\x20\0\x0f" + bytes(20)))
    with pytest.raises(MediaError, match="subtitles are pictures") as caught:
        read_track(str(pictures))
    assert "--speech" in (caught.value.hint or "")
    beside = write(tmp_path / "film.srt", SRT)
    assert find_subtitles(str(film)).path == beside
    for flag, code, words in (("track:eng", 0, ""), ("track:fre", 1, "its tracks are in"), ("track", 0, "")):
        got, out, err = asked(capsys, str(film), QUESTION, "--subtitles", flag, "-n", "1")
        assert got == code and words in err and bool(out) == (code == 0)
    assert "no subtitle track in it" in asked(capsys, str(clip), QUESTION, "--subtitles", "track")[2]
