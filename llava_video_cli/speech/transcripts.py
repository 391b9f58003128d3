"""The transcripts of files: from the user's cache folder, or made by a model that is opened when one is needed."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..conversation import Media, Segment
from ..errors import LlvidError, ModelError
from ..prompt.subtitles import Subtitles, shortened
from ..system.background import Background
from ..system.files import cache_folder, fingerprint, whole_file
from ..video import Frames
from ..video.files import file_of
from ..video.limits import Limits
from ..video.sampling import Sampling
from . import SpeechOptions, SpokenSegment, Transcriber, Word
from .whisper import SpeechWeights, WhisperTranscriber, check_options, default_device, fetch_weights, local_weights

Medium = TypeVar("Medium", bound=Media)
NO_SOUND = "it has no sound"
_MOST_BYTES = 64 * 2**20  # of the cache: some 600 films
_WHOLE_BYTES = 64 * 2**20  # a larger file is known by its size and blocks of it
_BLOCKS, _BLOCK_BYTES = 64, 256 * 2**10
_RECENT = 16  # transcripts in memory, of 0.1 MB an hour
_LIFE_SECONDS = 1.0
_VERSION = 2  # of the cached files; a change of what transcripts hold raises it


@dataclass(frozen=True)
class Transcript:
    """What is said in a file or a part of it. `notes` are lines for the user."""

    segments: tuple[SpokenSegment, ...]
    notes: tuple[str, ...] = ()

    @property
    def language(self) -> str | None:
        """The language's code, None if nothing is said."""
        return self.segments[0].language if self.segments else None

    def lines(self, path: str) -> Subtitles:
        """Return what goes into a prompt; `path` is the file's."""
        texts = ((each, shortened(" ".join(each.text.split()))) for each in self.segments)
        return Subtitles(
            path, tuple(Segment(each.start_seconds, each.end_seconds, text) for each, text in texts if text)
        )


class Transcripts:
    """Makes transcripts with the same options, each once. Its methods may be called in several threads.

    `transcriber` replaces the Whisper of the options. `fetch` returns the weights of a model's name, downloaded if
    necessary. `cache` is the folder for transcripts, by default the user's; it is kept small. `cores` are those that
    Whisper may use on a CPU, None for all.
    """

    def __init__(
        self,
        options: SpeechOptions,
        transcriber: Transcriber | None = None,
        *,
        fetch: Callable[[str], SpeechWeights] = fetch_weights,
        cache: Path | None = None,
        cores: int | None = None,
    ) -> None:
        self.options, self._transcriber, self._fetch, self._cores = options, transcriber, fetch, cores
        self._cache = cache or cache_folder() / "transcripts"
        self._lock = threading.Lock()
        self._recent: OrderedDict[object, Transcript] = OrderedDict()  # of files that nobody has changed since
        self._most_recent = _RECENT
        self._opened_here = transcriber is None

    def transcript(
        self,
        path: str | os.PathLike[str],
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        *,
        limits: Limits | None = None,
    ) -> Transcript:
        """Return the transcript of the part `[start, end)` of a file, by default all of it.

        A file without sound has an empty one, for which no model is loaded. Raises MediaError for what can't be read,
        ModelError for a model that can't be loaded.
        """
        if (recent := self._recall(path, start_seconds, end_seconds)) is not None:
            return recent
        notes: list[str] = []
        stream = self.stream(path, start_seconds, end_seconds, limits=limits, notes=notes)
        return self._remember(Transcript(tuple(stream), tuple(notes)), path, start_seconds, end_seconds)

    def _remember(
        self, transcript: Transcript, path: str | os.PathLike[str], start: float | None, end: float | None
    ) -> Transcript:
        with suppress(OSError):
            self._recent[_state(path, start, end)] = transcript
        while len(self._recent) > self._most_recent:
            self._recent.popitem(last=False)
        return transcript

    def _recall(
        self, path: str | os.PathLike[str], start_seconds: float | None, end_seconds: float | None
    ) -> Transcript | None:
        with suppress(OSError):
            return self._recent.get(_state(path, start_seconds, end_seconds))
        return None

    def stream(
        self,
        path: str | os.PathLike[str],
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        *,
        limits: Limits | None = None,
        notes: list[str],
    ) -> Iterator[SpokenSegment]:
        """Yield the segments of the transcript as they are made; lines for the user are appended to `notes`."""
        from ..video.sound import has_sound, iter_sound

        name = os.fspath(path)
        if not has_sound(name, limits):
            notes.append(NO_SOUND)
            return
        content, part = _content(Path(file_of(name))), (start_seconds, end_seconds)
        kept = self._read(content, part)
        if kept is None:
            with self._lock:
                transcriber = self._opened()
                notes += transcriber.notes
                # another thread may have made it meanwhile
                kept = self._recall(name, *part) or self._read(content, part)
                if kept is None:
                    broken: list[str] = []
                    segments: list[SpokenSegment] = []
                    sound = iter_sound(name, *part, limits=limits, broken=broken)
                    with closing(sound):
                        for segment in transcriber.transcribe(sound, self.options):
                            segments.append(segment)
                            yield segment
                    lost = (f"damaged packets of sound: {len(broken)}",) if broken else ()
                    notes += [*lost, *_unheard(segments, part)]
                    self._write(content, part, Transcript(tuple(segments), lost))
                    self._remember(Transcript(tuple(segments), tuple(notes)), name, *part)
                    return
        known = [*kept.notes, *_unheard(kept.segments, part)]
        notes += [line for line in known if line not in notes]
        yield from kept.segments

    def fits_beside(self, device: str, free_bytes: float) -> bool:
        """Return whether its model computes elsewhere than on a device, or fits what is free there."""
        if self._transcriber is not None:
            return self._transcriber.device != device or self._transcriber.needed_bytes <= free_bytes
        weights = local_weights(self.options.model)
        return weights is None or default_device() != device or weights.needed_bytes <= free_bytes

    def transcribe_all(self, files: Iterable[tuple[str, Sampling]], limits: Limits, stop: threading.Event) -> None:
        """Make the transcripts of files, of the part of each sampling, and keep them; then free the model's memory.

        What can't be transcribed is left out: who asks for it gets the error.
        """
        self._most_recent = sys.maxsize
        for path, part in files:
            if stop.is_set():
                break
            try:
                self.transcript(path, part.start_seconds or None, part.end_seconds, limits=limits)
            except ModelError:
                break
            except LlvidError:
                continue
        if self._opened_here:
            with self._lock:
                self._transcriber = None

    def _opened(self) -> Transcriber:
        if self._transcriber is None:
            self._transcriber = WhisperTranscriber(self._fetch(self.options.model), cores=self._cores)
        return self._transcriber

    def _file(self, content: str, part: tuple[float | None, float | None]) -> Path | None:
        """Return where a transcript is kept, None if it isn't known yet which weights would make it."""
        named = self._transcriber or local_weights(self.options.model)
        if named is None:
            return None
        key = json.dumps([_VERSION, content, named.name, asdict(self.options) | {"model": None}, part])
        return self._cache / f"{fingerprint(key.encode())}.json"

    def _read(self, content: str, part: tuple[float | None, float | None]) -> Transcript | None:
        for each in dict.fromkeys(((None, None), part)):  # the whole has all parts
            if (file := self._file(content, each)) is None:
                return None
            with suppress(OSError, ValueError, TypeError, KeyError):
                kept = _transcript(json.loads(file.read_bytes()))
                os.utime(file)
                start, end = (part[0] or 0.0, part[1]) if each != part else (None, None)
                segments = tuple(
                    segment
                    for segment in kept.segments
                    if (start is None or segment.end_seconds > start) and (end is None or segment.start_seconds < end)
                )
                return Transcript(segments, kept.notes)
        return None

    def _write(self, content: str, part: tuple[float | None, float | None], transcript: Transcript) -> None:
        """Keep a transcript, and remove those that were used least lately where there are too many."""
        if (file := self._file(content, part)) is None:
            return
        with suppress(OSError, LlvidError):  # a full disk or a read-only home costs only time
            self._cache.mkdir(0o700, parents=True, exist_ok=True)
            with whole_file(file) as beside:
                beside.write_text(json.dumps(asdict(transcript)), encoding="utf-8")
            kept = sorted(
                ((path.stat(), path) for path in self._cache.glob("*.json")), key=lambda each: -each[0].st_mtime
            )
            total_bytes = 0
            for status, path in kept:
                total_bytes += status.st_size
                if total_bytes > _MOST_BYTES:
                    path.unlink(missing_ok=True)


_shared: dict[str, Transcripts] = {}


def share(model: str, transcripts: Transcripts) -> None:
    """Let prompts have these transcripts where the sampling's `speech_model` is that name."""
    _shared[model] = transcripts


def shared(model: str, cores: int | None = None) -> Transcripts:
    """Return the transcripts for prompts, made at the first call, with so many cores."""
    return _shared.setdefault(model, Transcripts(SpeechOptions(model), cores=cores))


def check_speech(sampling: Sampling) -> None:
    """Raise LlvidError where speech is wanted, but its model's name makes no sense or faster-whisper isn't there."""
    if sampling.speech and sampling.speech_model not in _shared:
        check_options(SpeechOptions(sampling.speech_model))


def hear(video: Medium, part: Sampling | None = None, *, limits: Limits | None = None) -> Medium:
    """Return frames with what is said in their part, if their sampling wants that; pictures as they are.

    A `part` has the times of a longer part, all of which is transcribed in one go. Raises what `transcript` raises.
    """
    if not isinstance(video, Frames) or not video.sampling.speech:
        return video
    transcript = transcribe(video.path, part or video.sampling, limits)
    lines = transcript.lines(video.path).between(*video.part_seconds)
    notes = [*video.notes, *transcript.notes]
    if not lines and transcript.segments:  # else it has a note already
        notes.append("nothing is said in this part")
    speech = tuple((line.start_seconds, line.end_seconds, line.text) for line in lines)
    return replace(video, speech=speech, notes=tuple(notes))


def transcribe(path: str, part: Sampling, limits: Limits | None = None) -> Transcript:
    """Return what `hear` needs. Raises what `transcript` raises."""
    transcripts = shared(part.speech_model)
    return transcripts.transcript(path, part.start_seconds or None, part.end_seconds, limits=limits)


def listen(path: str, part: Sampling, *, limits: Limits | None = None) -> Iterator[None]:
    """Make what `hear` needs, if it is wanted, and yield now and then: the caller shows life.

    It is made in a thread, which goes on if the caller leaves. Raises what `transcript` raises.
    """
    if part.speech:
        making = Background("llvid-speech", transcribe, path, part, limits)
        while not making.check(_LIFE_SECONDS):
            yield


def _unheard(segments: Sequence[SpokenSegment], part: tuple[float | None, float | None]) -> list[str]:
    """Return the note of a file or a part in which nothing is said: no output at all would say nothing of it."""
    return [] if segments else ["nothing is said in it" if part == (None, None) else "nothing is said in this part"]


def _state(path: str | os.PathLike[str], *part: float | None) -> tuple[object, ...]:
    name = os.fspath(path)
    status = Path(file_of(name)).stat()
    return name, status.st_size, status.st_mtime_ns, part


def _transcript(values: Any) -> Transcript:
    segments = [
        SpokenSegment(**{**segment, "words": tuple(Word(**word) for word in segment["words"])})
        for segment in values["segments"]
    ]
    return Transcript(tuple(segments), tuple(values["notes"]))


def _content(path: Path) -> str:
    """Return what names a file's content: a fingerprint of all of it, or of blocks all over a large one."""
    size = path.stat().st_size
    offsets: Sequence[int] = (0,)
    length = size
    if size > _WHOLE_BYTES:
        offsets = [number * (size - _BLOCK_BYTES) // (_BLOCKS - 1) for number in range(_BLOCKS)]
        length = _BLOCK_BYTES
    blocks = bytearray(str(size).encode())
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            blocks += file.read(length)
    return fingerprint(bytes(blocks))
