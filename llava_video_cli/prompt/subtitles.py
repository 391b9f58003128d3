"""Subtitles: the lines spoken in a video, read from a file, and as many of them as fit into a prompt."""

from __future__ import annotations

import io
import re
from bisect import bisect_left
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from ..conversation import Media, Request, Segment, Turn
from ..errors import MediaError
from ..system.files import fingerprint
from ..video import Frames
from ..video.files import check_file, is_sequence, named_path
from .budget import Budget

_SUFFIXES = (".srt", ".vtt", ".ass")
_FORMATS = "srt,webvtt,ass"  # FFmpeg's names; none of these formats refers to another file
_TEXT_CODECS = ("subrip", "srt", "ass", "ssa", "webvtt", "mov_text", "text")
_USE_SPEECH = "--speech transcribes what is said"
_ENCODING_HINT = (
    "`iconv -f ENCODING -t UTF-8 FILE > NEW_FILE` converts it, if you know its encoding: "
    "WINDOWS-1252, CP1251, SHIFT-JIS or another"
)
_DEADLINE_PACKETS = 8
_MOST_BYTES = 16 * 2**20  # the lines of a film take 100 KB, with effects some megabytes
LONGEST_LINE = 500  # characters: nobody speaks a longer line
_CUT = "\N{HORIZONTAL ELLIPSIS}"  # the end of a cut line tells the model and the notes of it
_FIRST_TRY = 16
_OVERRIDE = re.compile(r"(\{[^{}]*\})")  # of ASS: {\i1}, {\an8}
_BREAK = re.compile(r"\\[Nnh]|[\s\x00-\x1f\x7f-\x9f]+")  # of ASS, and control characters

Line = TypeVar("Line")
Make: TypeAlias = Callable[[Sequence[Segment]], Sequence[Request]]
Count: TypeAlias = Callable[[Request], Budget]


@dataclass(frozen=True)
class LineCount:
    """How many subtitle lines a part of a video has, how many are `used` in the prompt, how many of those are `cut`."""

    used: int
    total: int
    cut: int = 0


@dataclass(frozen=True)
class Subtitles:
    """The lines of a file, in order of their start, in seconds from the start of the video."""

    path: str
    lines: tuple[Segment, ...]

    @cached_property
    def digest(self) -> str:
        """A fingerprint of the lines and their times."""
        return fingerprint(repr(self.lines).encode())

    def between(self, start_seconds: float, end_seconds: float) -> tuple[Segment, ...]:
        """Return the lines that overlap `[start_seconds, end_seconds)`."""
        first = bisect_left(self._starts, start_seconds - self._longest_seconds)
        lines = self.lines[first : bisect_left(self._starts, end_seconds)]
        return tuple(line for line in lines if max(line.end_seconds, line.start_seconds + 1e-3) > start_seconds)

    def requests(self, video: Frames, make: Make, count: Count) -> tuple[Sequence[Request], LineCount]:
        """Return requests about a video with as many lines of its part as fit into each of them.

        `make` makes the requests with the lines that it is given, `count` is `Model.budget`. If not all lines fit,
        those that do are spread evenly over the part. The questions and the longest answers still fit.
        """
        lines = self.between(*video.part_seconds)
        return _fitting([line.text for line in lines], lambda number: make(thinned(lines, number)), count)

    @cached_property
    def _starts(self) -> list[float]:
        return [line.start_seconds for line in self.lines]

    @cached_property
    def _longest_seconds(self) -> float:
        return max((line.end_seconds - line.start_seconds for line in self.lines), default=0.0)


def _fitting(
    texts: Sequence[str], make: Callable[[int], Sequence[Request]], count: Count
) -> tuple[Sequence[Request], LineCount]:
    """Return the requests that `make` makes with as many of the lines as fit into each of them."""

    def left(number: int) -> int:
        return min(count(request).left for request in make(number))

    most = min(len(texts), max(0, left(0)))  # a line takes at least one token
    used = largest(lambda number: left(number) >= 0, most)
    return make(used), LineCount(used, len(texts), sum(map(_is_cut, thinned(texts, used))))


def fitting(
    media: Iterable[Media], make: Callable[[int], Sequence[Request]], count: Count
) -> tuple[Sequence[Request], LineCount | None]:
    """Return requests about media with as many lines of what is said in the videos as fit into each of them.

    `make` makes the requests with that number of lines, as `with_speech` puts them in; `count` is `Model.budget`.
    """
    lines = [Segment(*line) for medium in media if isinstance(medium, Frames) for line in medium.speech or ()]
    return _fitting([line.text for line in lines], make, count) if lines else (make(0), None)


def with_speech(turns: Sequence[Turn], number: int) -> tuple[Turn, ...]:
    """Return turns with `number` of the lines that are said in their videos before their texts, spread evenly."""
    owned = [(at, medium) for at, turn in enumerate(turns) for medium in turn.media if isinstance(medium, Frames)]
    spoken = [(place, Segment(*line)) for place, (_, video) in enumerate(owned) for line in video.speech or ()]
    chosen: dict[int, list[Segment]] = {}
    for place, line in thinned(spoken, number):
        chosen.setdefault(place, []).append(line)
    texts = []
    for at, turn in enumerate(turns):
        text = turn.text
        for place, (owner, _) in reversed([*enumerate(owned)]):
            if owner == at:
                whose = "Its" if len(owned) == 1 else f"Video {place + 1}'s"
                text = with_lines(text, chosen.get(place, ()), whose)
        texts.append(replace(turn, text=text))
    return tuple(texts)


def notes_of(parts: Iterable[LineCount | None]) -> list[str]:
    """Return notes for the user on the subtitles of a video's parts; None stands for a part without subtitles."""
    counts = [part for part in parts if part is not None]
    used, total = sum(part.used for part in counts), sum(part.total for part in counts)
    if counts and not total:
        return ["the subtitles have no lines in this part"]
    notes = [f"only {used} of {total} subtitle lines fit the context; they are spread evenly"] if used < total else []
    if cut := sum(part.cut for part in counts):
        lines = "1 subtitle line is" if cut == 1 else f"{cut} subtitle lines are"
        notes.append(f"{lines} longer than {LONGEST_LINE} characters; only the beginning is used")
    return notes


def with_lines(text: str, lines: Sequence[Segment], whose: str = "Its") -> str:
    """Return a question after the lines that are spoken in the video, each with its start time."""
    if not lines:
        return text
    spoken = "".join(f"{line.start_seconds:.1f}s: {line.text}\n" for line in lines)
    return f"{whose} subtitles, each line at the time when it is spoken:\n{spoken}{text}"


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number up to `most` that fits, if all smaller ones do; much larger ones are not tried."""
    low, high = 0, min(_FIRST_TRY, most)
    while low < high and fits(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def thinned(lines: Sequence[Line], count: int) -> tuple[Line, ...]:
    """Return `count` of the lines, spread evenly."""
    return tuple(lines[index * len(lines) // count] for index in range(count))


def shortened(text: str) -> str:
    """Return a line, cut after `LONGEST_LINE` characters, of which the last one then is an ellipsis."""
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 1] + _CUT


def _is_cut(text: str) -> bool:
    return len(text) == LONGEST_LINE and text.endswith(_CUT)


def find_subtitles(video: str) -> Subtitles:
    """Return the subtitles of a video: of the file of its name that ends in .srt, .vtt or .ass, or of a track in it.

    Raises MediaError if there are none.
    """
    files = [named_path(video).with_suffix(suffix) for suffix in _SUFFIXES]
    for file in files:
        if file.is_file():
            return read_subtitles(str(file))
    if (track := read_track(video)) is not None:
        return track
    *names, last = (file.name for file in files)
    raise MediaError(f"{video}: no subtitles in it or next to it", f"there is no {', '.join(names)} or {last}")


def read_track(video: str, language: str | None = None) -> Subtitles | None:
    """Return the lines of a subtitle track in a video, on the clock of its frames; None if it has no tracks.

    That is the default one of the language, as the file writes it (`eng`), or else the first. Pictures that are a video
    have none. Raises MediaError if there is none in the language, or if its lines are pictures.
    """
    if is_sequence(video):
        return None
    from av.stream import Disposition

    from ..video.demux import media_errors, open_container
    from ..video.limits import Deadline, Limits
    from ..video.sound import clock_start_seconds, only_stream

    deadline = Deadline(video, Limits())
    with open_container(video, deadline) as container, media_errors(video):
        tracks = [each for each in container.streams.subtitles if language in (None, each.language)]
        if not tracks:
            there = dict.fromkeys(each.language or "no language" for each in container.streams.subtitles)
            if not there:
                return None
            raise MediaError(f"{video}: no subtitle track in {language!r}", f"its tracks are in {', '.join(there)}")
        texts = [each for each in tracks if each.name in _TEXT_CODECS]
        if not texts:
            kinds = ", ".join(dict.fromkeys(each.name or "unknown" for each in tracks))
            raise MediaError(f"{video}: its subtitles are pictures ({kinds}), which can't be read as text", _USE_SPEECH)
        track = max(texts, key=lambda each: bool(each.disposition & Disposition.default))
        zero = clock_start_seconds(video, container, deadline) or 0.0
        only_stream(container, track)
        lines: list[Segment] = []
        size = 0
        for number, packet in enumerate(container.demux(track)):
            if number % _DEADLINE_PACKETS == 0:
                deadline.left()
            line = _line(packet, zero)
            size += len(line.text) if line else 0
            if size > _MOST_BYTES:
                raise MediaError(f"{video}: its subtitles are too large")
            lines += [line] if line else []
    return Subtitles(video, tuple(sorted(lines, key=lambda line: line.start_seconds)))


def read_subtitles(path: str) -> Subtitles:
    """Return the lines of a SubRip, WebVTT or ASS file without markup and control characters.

    It is in UTF-8, or in UTF-16 with a byte order mark. Raises MediaError for any other file, and for one that is too
    large.
    """
    check_file(path, "file of subtitles")
    size = Path(path).stat().st_size
    if size > _MOST_BYTES:
        raise MediaError(f"{path}: {size / 2**20:.0f} MiB is too large for subtitles")
    try:
        content = Path(path).read_bytes()
        is_utf16 = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        # FFmpeg would end the file, or a line, at a NUL
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig").replace("\0", "")
    except UnicodeDecodeError as error:
        if error.encoding.startswith("utf-16"):
            raise MediaError(f"{path}: broken UTF-16 text") from None
        raise MediaError(f"{path}: not UTF-8 text", _ENCODING_HINT) from None
    except OSError as error:
        raise MediaError(f"{path}: can't be read: {error.strerror}") from None
    lines = sorted(_lines(path, text.encode()), key=lambda line: line.start_seconds)
    if not lines:
        raise MediaError(f"{path}: the file has no subtitle lines")
    return Subtitles(path, tuple(lines))


def _lines(path: str, content: bytes) -> Iterator[Segment]:
    """Yield the lines that FFmpeg reads, converted to ASS. An encoding that the file declares is ignored."""
    import av
    import av.error

    try:
        with av.open(io.BytesIO(content), "r", options={"format_whitelist": _FORMATS}) as container:
            for packet in container.demux(container.streams.subtitles[0]):
                if line := _line(packet):
                    yield line
    except (av.error.FFmpegError, IndexError) as error:
        raise MediaError(f"{path}: not a .srt, .vtt or .ass file, or a broken one") from error


def _line(packet: Any, zero_seconds: float = 0.0) -> Segment | None:
    if packet.pts is None or packet.time_base is None:
        return None
    text = shortened(" ".join(filter(None, map(_plain, packet.decode()))))
    start = float(packet.pts * packet.time_base) - zero_seconds
    seconds = float(max(0, packet.duration or 0) * packet.time_base)  # the end that a file has may be before its start
    return Segment(start, start + seconds, text) if text else None


def _plain(event: object) -> str:
    """Return the text of an event of ASS, its ninth field, on one line and without drawings."""
    fields = getattr(event, "ass", b"").decode("utf-8", "replace").split(",", 8)
    text, draws = "", False
    for part in _OVERRIDE.split(fields[-1]) if len(fields) == 9 else ():
        if _OVERRIDE.fullmatch(part):
            draws = bool(re.search(r"\\p[1-9]", part)) or (draws and r"\p0" not in part)
        elif not draws:
            text += part
    return " ".join(_BREAK.sub(" ", text).split())
