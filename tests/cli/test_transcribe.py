"""`llvid transcribe`: formats, folders, sound that isn't there, and speech models from the hub."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pysubs2
import pytest
from hub import running_hub
from sounds import make_film
from terminal import failed, llvid
from whisper import LoudestSeconds, Silent

from llava_video_cli import MediaError, UsageError
from llava_video_cli.cli.app import run
from llava_video_cli.runs.formats import Sidecars
from llava_video_cli.runs.resumable import RunOptions
from llava_video_cli.runs.transcribe import transcribe_folder
from llava_video_cli.speech import SpeechOptions
from llava_video_cli.speech.transcripts import Transcripts
from llava_video_cli.speech.whisper import MODELS

BEEPS = (0.5, 2.25, 3.5)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first beep is heard half a second before the first picture."""
    return make_film(tmp_path_factory.mktemp("films") / "film.mkv", BEEPS, 4.0, first_stamp=24)


def speech(cache: Path, fake: LoudestSeconds) -> Transcripts:
    return Transcripts(SpeechOptions(), fake, cache=cache)


def transcribed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["transcribe", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_formats(tmp_path: Path, film: Path) -> None:
    fake = LoudestSeconds()
    for name in ("film.srt", "film.vtt", "film.txt", "film.json"):
        (record,) = transcribe_folder(film, tmp_path / name, speech=speech(tmp_path / "cache", fake))
    assert fake.calls == 1
    for suffix in ("srt", "vtt"):
        events = pysubs2.load(str(tmp_path / f"film.{suffix}")).events
        assert [event.text for event in events] == ["beep 1", "beep 2", "beep 3"]
        assert [event.start for event in events] == pytest.approx([500, 2250, 3500], abs=50)
    assert (tmp_path / "film.txt").read_text() == "beep 1 beep 2 beep 3\n"
    values = json.loads((tmp_path / "film.json").read_text())
    assert values == json.loads(json.dumps(record.values))
    assert values["transcript"] == "beep 1 beep 2 beep 3" and values["language"] == "en"
    assert [each["start_seconds"] for each in values["segments"]] == pytest.approx(BEEPS, abs=0.05)


def test_a_folder_is_resumed(tmp_path: Path, film: Path, clip: Path) -> None:
    clips, fake = tmp_path / "clips", LoudestSeconds()
    (clips / "more").mkdir(parents=True)
    shutil.copy(film, clips / "a.mkv")
    shutil.copy(film, clips / "more" / "b.mkv")
    shutil.copy(clip, clips / "silent.mp4")
    (clips / "picture.png").write_bytes(b"no video")
    (clips / "broken.mp4").write_bytes(b"no video")
    sidecars = Sidecars(("srt",))
    told = list[str]()

    def go_on() -> dict[str, int]:
        options = RunOptions(notify=told.append)
        made = transcribe_folder(
            clips, speech=speech(tmp_path / "cache", fake), sidecars=sidecars, recursive=True, options=options
        )
        list(made)
        return {"done": made.summary.done, "before": made.summary.done_before, "failed": made.summary.failed}

    assert go_on() == {"done": 3, "before": 0, "failed": 1} and fake.calls == 1, "two have the same content"
    assert go_on() == {"done": 0, "before": 3, "failed": 1}
    assert (clips / "a.srt").read_bytes() == (clips / "more" / "b.srt").read_bytes() != b""
    assert (clips / "silent.srt").read_text() == ""
    (clips / "a.srt").unlink()
    assert go_on()["before"] == 3 and (clips / "a.srt").exists(), "written again from the record"
    records = [json.loads(line) for line in (clips / "llvid-transcripts.jsonl").read_text().splitlines()]
    assert {Path(each["video_path"]).name: each["notes"] for each in records} == {
        "a.mkv": [], "b.mkv": [], "silent.mp4": ["it has no sound"],
    }  # fmt: skip
    assert "words" not in records[0] and records[0]["settings"]["vad"] is True


def test_no_sound_is_no_failure(tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No model is looked for, either: the default one isn't here."""
    pytest.importorskip("faster_whisper", reason="the extra speech is not installed")
    assert transcribed(capsys, clip) == (0, "", f"{clip}: it has no sound\n")
    code, out, err = transcribed(capsys, clip, "-o", tmp_path / "a.srt")
    assert (code, out) == (0, "") and f"{clip}: it has no sound" in err
    assert (tmp_path / "a.srt").read_text() == ""
    code, out, err = transcribed(capsys, clip, "--json", "-q")
    values = json.loads(out)
    assert (code, err, values["transcript"], values["segments"]) == (0, "", "", [])
    assert values["notes"] == ["it has no sound"]


def test_the_whole_way(film: Path, whisper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With Whisper: lines are streamed; JSON has words; the second time nothing is computed."""
    options = ("--speech-model", whisper, "--no-vad", "--language", "de")
    code, out, err = transcribed(capsys, film, *options)
    assert code == 0 and err == "" and out.startswith("0:0") and out.count("\n") >= 1
    code, out, err = transcribed(capsys, film, *options, "--json", "-q")
    values = json.loads(out)
    assert code == 0 and values["words"] and values["language"] == "de" and values["model"] == str(whisper)
    assert {"start_seconds", "end_seconds", "text"} == set(values["words"][0])
    assert transcribed(capsys, film, *options, "--json", "-q")[1] == out


def test_where_nothing_is_said_a_note_says_so(film: Path, whisper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the second time, when the transcript comes from the cache."""
    for _ in range(2):
        command = (film, "--speech-model", whisper, "--no-vad", "--start", "9:00")
        assert transcribed(capsys, *command) == (0, "", f"{film}: nothing is said in this part\n")
        assert transcribed(capsys, film, "--speech-model", whisper)[::2] == (0, f"{film}: nothing is said in it\n")
    values = json.loads(transcribed(capsys, film, "--speech-model", whisper, "--json", "-q")[1])
    assert values["segments"] == [] and values["notes"] == ["nothing is said in it"]


def test_stdin_is_a_video_or_a_list_and_urls_are_fetched(
    film: Path, whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--speech-model", str(whisper), "--no-vad")
    lines = transcribed(capsys, film, *options)[1]
    assert lines and transcribed(capsys, film.as_uri(), *options) == (0, lines, "")
    with film.open("rb") as stdin:
        assert llvid("transcribe", "-", *options, stdin=stdin).stdout == lines
    target = tmp_path / "a.json"
    with film.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert transcribed(capsys, "-", *options, "-o", target)[0] == 0
    assert json.loads(target.read_text())["video_path"] == "-"
    (tmp_path / "list").write_text(f"{film}\n{tmp_path}/no.mp4\n")
    with (tmp_path / "list").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, out, err = transcribed(capsys, "-", *options)
    assert code == 3 and json.loads(out)["video_path"] == str(film)
    assert f"{tmp_path}/no.mp4: no such file" in err
    assert "a web page" in transcribed(capsys, "https://youtu.be/x", *options)[2]
    assert "--sidecar needs files" in transcribed(capsys, film.as_uri(), *options, "--sidecar", "srt")[2]


def test_a_folder_without_sound_or_videos(tmp_path: Path, film: Path) -> None:
    words = f"{tmp_path}: no videos or sound files in it"
    with pytest.raises(MediaError, match=words):
        transcribe_folder(tmp_path, speech=speech(tmp_path / "cache", Silent()))
    (tmp_path / "more").mkdir()
    for place in (tmp_path, tmp_path / "more"):
        (place / "a.png").write_bytes(b"a picture")
    shutil.copy(film, tmp_path / "more" / "b.mkv")
    with pytest.raises(MediaError, match=words) as error:
        transcribe_folder(tmp_path, speech=speech(tmp_path / "cache", Silent()))
    assert error.value.hint == f"--recursive takes those in its subfolders, such as {tmp_path}/more/b.mkv"


def test_errors_come_before_the_model(tmp_path: Path, film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faster_whisper", reason="the extra speech is not installed")
    for arguments, code, words in (
        ((tmp_path / "no.mp4",), 1, "no such file"), ((film, "-o", "a.csv"), 2, "must end in .jsonl"),
        ((film, "--speech-model", "smal"), 2, "did you mean 'small'?"), ((film, "--language", "xx"), 2, "no language"),
        ((film, "--start", "3", "--end", "2"), 2, "must come after"), ((film, film, "-o", "a.srt"), 2, "must end in"),
        ((film, "--speech-model", tmp_path / "no"), 1, "doesn't exist"), ((film,), 1, "isn't in the local cache"),
        ((film, "--output-dir", "a"), 2, "needs --sidecar"),
    ):  # fmt: skip
        got, out, err = transcribed(capsys, *arguments)
        assert (got, out) == (code, "") and words in err, arguments


def test_a_model_of_the_hub_is_fetched_once(tmp_path: Path, film: Path, whisper: Path) -> None:
    with running_hub({MODELS["small"]: whisper}) as hub:
        env = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        first = llvid("transcribe", str(film), "--no-vad", env=env)
        assert (first.returncode, first.stderr) == (0, "") and first.stdout
        asked = len(hub.asked)
        assert llvid("transcribe", str(film), "--no-vad", "--end", "2", env=env).returncode == 0
        assert len(hub.asked) == asked, "neither for weights nor for a tokenizer"
    offline = env | {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert llvid("transcribe", str(film), "--no-vad", env=offline).stdout == first.stdout
    line = failed(llvid("transcribe", str(film), "--speech-model", "tiny", env=offline), 1)
    assert "isn't in the local cache and the hub isn't used in offline mode" in line


def test_python_raises_for_what_makes_no_sense(tmp_path: Path, film: Path) -> None:
    with pytest.raises(UsageError, match="must end in"):
        transcribe_folder(film, tmp_path / "a.parquet", speech=speech(tmp_path, Silent()))
    with pytest.raises(MediaError, match="no such file"):
        transcribe_folder(tmp_path / "no.mp4", speech=speech(tmp_path, Silent()))
