"""Speech: the text and times of faster-whisper, the clock of the frames, and a cache that is bounded."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sounds import make_film, write_voices
from whisper import LoudestSeconds, Silent

from llava_video_cli import ModelError, UsageError
from llava_video_cli.errors import LlvidError
from llava_video_cli.speech import SpeechOptions
from llava_video_cli.speech.transcripts import NO_SOUND, Transcripts
from llava_video_cli.speech.whisper import (
    LANGUAGES,
    SpeechWeights,
    WhisperTranscriber,
    check_options,
    local_weights,
    pieces,
)
from llava_video_cli.system import files
from llava_video_cli.video.sound import RATE, SoundChunk, iter_sound

BEEPS = (1.5, 3.25, 4.75)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beeps whose first picture comes one second late; the sound goes on."""
    stamps = range(24, 790, 48)
    return make_film(tmp_path_factory.mktemp("films") / "film.mkv", BEEPS, 33.0, stamps=stamps)


def transcripts(cache: Path, transcriber: LoudestSeconds, language: str | None = None) -> Transcripts:
    return Transcripts(SpeechOptions(language=language), transcriber, cache=cache)


@pytest.mark.parametrize("words", [pytest.param(False, marks=pytest.mark.slow), True])
def test_text_and_times_are_those_of_faster_whisper(whisper: Path, film: Path, words: bool) -> None:
    from faster_whisper import WhisperModel

    weights = local_weights(str(whisper))
    assert weights is not None
    options = SpeechOptions(str(whisper), vad=False, words=words)
    ours = list(WhisperTranscriber(weights, "cpu").transcribe(iter_sound(film), options))
    model = WhisperModel(str(whisper), device="cpu", compute_type="int8")
    segments, info = model.transcribe(str(film), word_timestamps=words)
    theirs = [each for each in segments if each.start < info.duration]  # it hears lines behind the end, too
    assert [each.text for each in ours] == [each.text.strip() for each in theirs] and len(ours) > 1
    assert {each.language for each in ours} == {info.language}
    assert [each.start_seconds for each in ours] == pytest.approx([each.start for each in theirs], abs=2e-3)
    ends = [min(each.end, info.duration) for each in theirs]
    assert [each.end_seconds for each in ours] == pytest.approx(ends, abs=2e-3)
    told = [(word.start_seconds, word.text) for each in ours for word in each.words]
    wanted = [(word.start, word.word) for each in theirs for word in each.words or ()]
    assert [text for _, text in told] == [text for _, text in wanted] and bool(wanted) == words
    assert [time for time, _ in told] == pytest.approx([time for time, _ in wanted], abs=2e-3)
    assert set(LANGUAGES) == set(model.supported_languages)


def test_batches_are_those_of_faster_whisper(whisper: Path, tmp_path: Path) -> None:
    """As on a GPU: the detector finds the stretches, here in vowels."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    film = write_voices(tmp_path / "voices.wav", 60.0)
    weights = local_weights(str(whisper))
    assert weights is not None
    options = SpeechOptions(str(whisper), language="de")
    ours = list(WhisperTranscriber(weights, "cpu", batch_size=4).transcribe(iter_sound(film), options))
    pipeline = BatchedInferencePipeline(WhisperModel(str(whisper), device="cpu", compute_type="int8"))
    segments, _ = pipeline.transcribe(str(film), language="de", batch_size=4, without_timestamps=False)
    theirs = [each for each in segments if each.start < 60]
    assert [each.text for each in ours] == [each.text.strip() for each in theirs] and len(ours) > 3
    assert [each.start_seconds for each in ours] == pytest.approx([each.start for each in theirs], abs=2e-3)


def test_silence_needs_no_voice_detector(whisper: Path) -> None:
    weights = local_weights(str(whisper))
    assert weights is not None
    model = WhisperTranscriber(weights, "cpu")
    silence = [SoundChunk(np.zeros(RATE * 60, np.float32), 60.0 * number) for number in range(65)]  # more than a piece
    assert list(model.transcribe(silence, SpeechOptions())) == []
    noise = SoundChunk(np.random.default_rng(0).normal(0, 0.01, RATE).astype(np.float32), 0.0)
    assert list(model.transcribe([noise], SpeechOptions())) == [], "the voice activity detector finds no speech"


@pytest.mark.parametrize("words", [False, True])
def test_no_line_is_outside_the_sound(whisper: Path, words: bool) -> None:
    """Whisper hears 30 seconds, filled up with silence; faster-whisper fails where its first step of time is not full.

    Between two jumps in time, a piece may be as short.
    """
    weights = local_weights(str(whisper))
    assert weights is not None
    options = SpeechOptions(vad=False, words=words)
    noise = np.random.default_rng(0).normal(0, 0.5, RATE).astype(np.float32)
    sound = [SoundChunk(noise[:200], 0.0), SoundChunk(noise, 1.0), SoundChunk(noise[:1], 3.0), SoundChunk(noise, 4.0)]
    segments = list(WhisperTranscriber(weights, "cpu").transcribe(sound, options))
    times = [time for each in segments for time in (each.start_seconds, each.end_seconds)]
    assert times == sorted(times) and all(1 <= time <= 2 or 4 <= time <= 5 for time in times)
    assert {int(time) for time in times} >= {1, 4}


def test_a_transcript_is_made_once(tmp_path: Path, film: Path) -> None:
    fake = LoudestSeconds()
    first = transcripts(tmp_path, fake).transcript(film)
    assert [each.start_seconds for each in first.segments] == pytest.approx(BEEPS, abs=0.05)
    assert first.language == "en" and [each.text for each in first.segments] == ["beep 1", "beep 2", "beep 3"]
    copy = tmp_path / "copy.mkv"
    copy.write_bytes(film.read_bytes())
    assert transcripts(tmp_path, Silent()).transcript(copy) == first, "by content"
    part = transcripts(tmp_path, Silent()).transcript(film, 3.0, 4.0)
    assert [each.text for each in part.segments] == ["beep 2"], "the whole has every part"
    assert transcripts(tmp_path, fake, language="de").transcript(film).language == "de" and fake.calls == 2
    film_of_one_more_byte = tmp_path / "more.mkv"
    film_of_one_more_byte.write_bytes(film.read_bytes() + b"\0")
    assert transcripts(tmp_path, fake).transcript(film_of_one_more_byte) == first and fake.calls == 3
    lines = first.lines(str(film))
    assert [line.text for line in lines.between(3.0, 4.0)] == ["beep 2"]


def test_a_part_is_transcribed_alone(tmp_path: Path, film: Path) -> None:
    fake = LoudestSeconds()
    part = transcripts(tmp_path, fake).transcript(film, 3.0, 4.0)
    assert [each.start_seconds for each in part.segments] == pytest.approx([3.25], abs=0.05)
    assert transcripts(tmp_path, Silent()).transcript(film, 3.0, 4.0) == part
    assert len(transcripts(tmp_path, fake).transcript(film).segments) == 3 and fake.calls == 2


def test_the_cache_is_small_and_may_be_broken(tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    transcripts(cache, LoudestSeconds()).transcript(film)
    (kept,) = cache.iterdir()
    assert cache.stat().st_mode & 0o77 == 0
    for content in (b"", b"{}", b'{"segments": [1], "notes": []}', b"\xff"):
        kept.write_bytes(content)
        fake = LoudestSeconds()
        assert len(transcripts(cache, fake).transcript(film).segments) == 3 and fake.calls == 1
    old = cache / "old.json"
    with old.open("wb") as file:
        file.truncate(2**26)
    os.utime(old, (1, 1))
    transcripts(cache, LoudestSeconds(), language="fr").transcript(film)
    assert not old.exists() and len(list(cache.iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    Transcripts(SpeechOptions(), LoudestSeconds()).transcript(film)
    assert list((files.cache_folder() / "transcripts").iterdir())
    (tmp_path / "file").write_text("")
    assert transcripts(tmp_path / "file" / "cache", LoudestSeconds()).transcript(film).segments


def test_no_sound_needs_no_model(tmp_path: Path, clip: Path) -> None:
    def fetch(_: str) -> SpeechWeights:
        raise AssertionError

    for speech in (transcripts(tmp_path, Silent()), Transcripts(SpeechOptions(), fetch=fetch)):
        transcript = speech.transcript(clip)
        assert (transcript.segments, transcript.notes, transcript.language) == ((), (NO_SOUND,), None)


def test_pieces_are_bounded_and_cut_where_it_is_quiet() -> None:
    noise = np.random.default_rng(0).normal(0, 0.3, 2 * RATE).astype(np.float32)
    chunks, quiet = [], 3570
    for number in range(1900):
        samples = noise.copy()
        if number == quiet // 2:
            samples[RATE // 2 : RATE] = 0
        chunks.append(SoundChunk(samples, 2.0 * number))
    (start, first), (middle, second) = pieces(chunks)
    assert start == 0 and quiet + 0.5 <= middle <= quiet + 1 and len(first) == round(middle * RATE)
    assert len(first) + len(second) == 1900 * 2 * RATE
    jump = [SoundChunk(samples, 0.0), SoundChunk(samples, 2.0), SoundChunk(samples, 9.0)]
    assert [(time, len(piece)) for time, piece in pieces(jump)] == [(0.0, 4 * RATE), (9.0, 2 * RATE)]
    assert list(pieces([])) == []


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        (SpeechOptions("smal"), "no speech model 'smal'", "did you mean 'small'?"),
        (SpeechOptions(language="english"), "no language 'english'", "de"),
        (SpeechOptions("small.en", language="de"), "knows English only", "use small"),
        (SpeechOptions("small.en", translate=True), "knows English only", "use small"),
        (SpeechOptions(""), "no model ''", ""),
    ],
)
def test_options_are_strict(options: SpeechOptions, words: str, hint: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check_options(options)
    assert hint in (caught.value.hint or "")


def test_a_folder_that_is_no_model_says_what_it_lacks(tmp_path: Path, whisper: Path) -> None:
    with pytest.raises(ModelError, match="doesn't exist"):
        local_weights(str(tmp_path / "no"))
    for name in ("config.json", "model.bin"):
        (tmp_path / name).write_bytes((whisper / name).read_bytes())
    with pytest.raises(ModelError, match=r"lacks tokenizer.json"):
        local_weights(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    weights = local_weights(str(tmp_path))
    assert weights is not None
    with pytest.raises(LlvidError, match="fails"):
        WhisperTranscriber(weights, "cpu")
