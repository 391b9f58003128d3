"""Video and picture files: list those that a run is asked for, and check one before a decoder opens it.

A video is a file, or pictures that are its frames: a folder of them, a pattern of their names, or a `PictureList`.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from ..errors import MediaError, nearest
from ..system.files import fingerprint

JPEG = b"\xff\xd8\xff"  # how such a picture begins
JPEG_STREAMS = (".mjpeg", ".mjpg")  # pictures one behind the other; a program for pictures reads the first one
# Not those of the system's table: it differs from machine to machine, and calls subtitles (.ass) and playlists sound.
_VIDEO_ENDINGS = {
    ".264", ".265", ".266", ".3g2", ".3gp", ".3gpp", ".amv", ".apng", ".asf", ".avi", ".avs", ".bik", ".dav", ".dif",
    ".divx", ".dv", ".f4v", ".flc", ".fli", ".flv", ".gif", ".gxf", ".h261", ".h263", ".h264", ".h265", ".h266",
    ".hevc", ".ismv", ".ivf", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mk3d", ".mkv", ".mod", ".mov", ".mp4",
    ".mpe", ".mpeg", ".mpg", ".mpg4", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".nuv", ".obu", ".ogm", ".ogv", ".ogx",
    ".qt", ".rm", ".rmvb", ".roq", ".smk", ".swf", ".tod", ".ts", ".ty", ".vc1", ".vob", ".vvc", ".webm", ".wm",
    ".wmv", ".wtv", ".y4m", *JPEG_STREAMS,
}  # fmt: skip
_SOUND_ENDINGS = {
    ".3ga", ".aac", ".ac3", ".adts", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".awb", ".caf", ".eac3", ".ec3",
    ".flac", ".isma", ".m2a", ".m4a", ".m4b", ".mka", ".mp2", ".mp3", ".mpa", ".mpga", ".oga", ".ogg", ".opus", ".ra",
    ".snd", ".spx", ".tta", ".w64", ".wav", ".weba", ".wma", ".wv",
}  # fmt: skip
_PICTURE_ENDINGS = {".avif", ".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_LISTED_FOLDERS = 1000  # in search of a video that may have been meant
_LISTED_NAMES = 1000  # of a folder, in search of a name that the user may have meant
_SIMILARITY = 0.75  # names of videos share their ending at least
STDIN = "standard input"  # what messages call it
_NUMBERED = re.compile(r"%0?\d*d")  # FFmpeg's way to write the numbers of pictures


class Spooled(str):
    """A medium whose content lies in a temporary `file`; as text, what messages call it.

    `typed` is what records call it: `-` for standard input, or a URL without its secrets. It stands wherever a path
    does.
    """

    __slots__ = ("file", "typed")
    file: str
    typed: str

    def __new__(cls, typed: str, file: str) -> Spooled:
        """Take what was typed, and the file."""
        made = super().__new__(cls, STDIN if typed == "-" else typed)
        made.typed, made.file = typed, file
        return made


class PictureList(str):
    """Pictures that are one video, in the order of their `paths`; as text, the first and the last of them.

    It stands wherever a path does.
    """

    __slots__ = ("paths",)
    paths: tuple[str, ...]

    def __new__(cls, paths: Sequence[str | os.PathLike[str]]) -> PictureList:
        """Take the paths of the pictures. Raises MediaError if there are none."""
        names = tuple(os.fspath(path) for path in paths)
        if not names:
            raise MediaError("a list of pictures is empty")
        made = super().__new__(cls, names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}")
        made.paths = names
        return made

    def __getnewargs__(self) -> tuple[tuple[str, ...]]:  # type: ignore[override]
        return (self.paths,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PictureList) and self.paths == other.paths

    def __ne__(self, other: object) -> bool:  # that of str would compare the text
        return not self == other

    def __hash__(self) -> int:
        return hash(self.paths)


def typed_name(path: str) -> str:
    """Return what records call a path: itself, or what was typed for what has none."""
    return path.typed if isinstance(path, Spooled) else path


def file_of(path: str) -> str:
    """Return the path of the file that holds what a path names."""
    return path.file if isinstance(path, Spooled) else path


def named_path(path: str) -> Path:
    """Return a path with a name, which files beside it take: `.` and `..` have none, but the folders they mean do."""
    return Path(os.path.abspath(path)) if Path(path).name in ("", os.pardir) else Path(path)  # noqa: PTH100


class Status(Protocol):
    """What shows whether a file has changed; `os.stat_result` has it."""

    @property
    def st_size(self) -> int:
        """Its size in bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """When it was last changed, in nanoseconds."""


@dataclass(frozen=True)
class Found:
    """A file, and the folder that the user named it by ("" if it was named itself)."""

    path: str
    root: str
    status: Status


def find(
    paths: Iterable[str],
    *,
    recursive: bool = False,
    as_video: bool = False,
    report_empty: bool = False,
    pictures: bool = True,
) -> Iterator[Found | MediaError]:
    """Yield each file that `paths` name, and the media in each folder that they name, sorted by name; each file once.

    In a folder, files count as videos and pictures by their ending. Sound files are included, as they often are videos;
    hidden files are not. A file that is named itself is always included. With `as_video`, the pictures of a folder or a
    pattern are one video, whose path is that of the folder, or the pattern. What can't be opened is yielded as an
    error with its `path`, and so is a folder without media, with `report_empty`. Without `pictures`, those in folders
    are left out.
    """
    seen: set[str] = set()
    for path in paths:
        is_empty = True
        for file in _named(path, recursive, as_video):
            if not pictures and isinstance(file, Found) and file.root and may_be_picture(_ending(file.path)):
                continue
            is_empty = False
            if isinstance(file, Found):
                whole = os.path.abspath(file.path)  # noqa: PTH100
                if whole in seen:
                    continue
                seen.add(whole)
            yield file
        if is_empty and report_empty:
            below = None if recursive else first_below(path, pictures=pictures)
            hint = f"--recursive takes those in its subfolders, such as {below}" if below else None
            kinds = "videos or pictures" if pictures else "videos or sound files"
            yield _failed(path, f"no {kinds} in it", hint)


def first_below(folder: str, *, pictures: bool = True) -> str | None:
    """Return a video, or one of the `pictures`, in the folders of a folder, if one is found soon."""
    for place, folders, names in islice(os.walk(folder), _LISTED_FOLDERS):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names) if place != folder else ():
            ending = _ending(name)
            if not name.startswith(".") and may_be_media(ending) and (pictures or not may_be_picture(ending)):
                return os.path.join(place, name)  # noqa: PTH118
    return None


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path would cost more, 100,000 times


def _named(path: str, recursive: bool, as_video: bool) -> Iterator[Found | MediaError]:
    if as_video and may_be_picture(_ending(path)) and not is_sequence(path):
        yield _failed(path, "one picture", "--as-video takes a folder, or a pattern in quotes: 'frame_*.jpg'")
        return
    if as_video and is_sequence(path) and not (recursive and os.path.isdir(path)):  # noqa: PTH112
        yield _sequence(path, "")
        return
    try:
        status = os.stat(file_of(path))  # noqa: PTH116 - a Path would cost more than the call, 100,000 times
    except FileNotFoundError:
        hint = "`llvid caption --as-video` takes the pictures of a pattern as one video" if is_pattern(path) else None
        yield _failed(path, "no such file or folder", hint)
    except (OSError, ValueError) as error:
        yield _failed(path, f"can't be opened: {getattr(error, 'strerror', None) or error}")
    else:
        if os.path.isdir(path):  # noqa: PTH112
            yield from _inside(path, path, recursive, as_video)
        else:
            yield Found(path, "", status)


def _sequence(path: str, root: str) -> Found | MediaError:
    try:
        return Found(path.rstrip(os.sep) or path, root, status_of(path))
    except MediaError as error:
        error.path = path
        return error
    except OSError as error:
        return _failed(path, f"can't be opened: {error.strerror}")


def _inside(folder: str, root: str, recursive: bool, as_video: bool) -> Iterator[Found | MediaError]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield _failed(folder, f"can't be listed: {error.strerror}")
        return
    has_sequence = False
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        if as_video and may_be_picture(_ending(entry.name)):
            if not has_sequence:
                yield _sequence(folder, root)
            has_sequence = True
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                if recursive:
                    yield from _inside(entry.path, root, recursive, as_video)
            elif may_be_media(_ending(entry.name)):
                status = entry.stat()
                if entry.is_file():
                    yield Found(entry.path, root, status)
        except OSError as error:
            yield _failed(entry.path, f"can't be opened: {error.strerror}")


def _failed(path: str, words: str, hint: str | None = None) -> MediaError:
    error = MediaError(f"{path}: {words}", hint)
    error.path = path
    return error


def is_sequence(path: str) -> bool:
    """Return whether a path names pictures that are one video: a list, a folder, or a pattern with `*`, `?` or `[`."""
    return isinstance(path, PictureList) or os.path.isdir(path) or is_pattern(path)  # noqa: PTH112


def is_pattern(path: str) -> bool:
    """Return whether a path is a pattern of names, and no file has it for its own name."""
    return not isinstance(path, (Spooled, PictureList)) and glob.has_magic(path) and not os.path.lexists(path)


def pictures_of(path: str) -> tuple[tuple[str, ...], int]:
    """Return the pictures that a path of `is_sequence` names, and how many videos beside them are left out.

    They come as people number them, 2 before 10; those of a list in its own order. Hidden files do not count. Raises
    MediaError if there are none.
    """
    if isinstance(path, PictureList):
        return path.paths, 0
    if is_folder := os.path.isdir(path):  # noqa: PTH112
        try:
            with os.scandir(path) as entries:
                names = [entry.path for entry in entries if not entry.name.startswith(".") and entry.is_file()]
        except OSError as error:
            raise MediaError(f"{path}: can't be listed: {error.strerror}") from None
    else:
        folder, pattern = os.path.split(path)
        if os.path.isdir(folder):  # noqa: PTH112 - it may be named `[2] Film`
            folder = glob.escape(folder)
        names = list(filter(os.path.isfile, glob.glob(os.path.join(folder, pattern))))  # noqa: PTH118, PTH207
    endings = [_ending(name) for name in names]
    pictures = [name for name, ending in zip(names, endings, strict=True) if may_be_picture(ending)]
    videos = sum(may_be_media(ending) for ending in endings) - len(pictures)
    if pictures:
        return tuple(sorted(pictures, key=natural)), videos
    if videos:
        kind = "a folder of videos" if is_folder else "these are videos"
        quoted = shlex.quote(path) if is_folder else path  # the shell is to find what fits a pattern
        raise MediaError(f"{path}: {kind}", f"`llvid caption {quoted} --prompt QUESTION` asks about each of them")
    if not is_folder:
        raise MediaError(f"{path}: there are no pictures of that name", _hint(path))
    below = first_below(path)
    if below and not may_be_picture(os.path.splitext(below)[1].lower()):  # noqa: PTH122
        each = f"`llvid caption {shlex.quote(path)} --recursive --prompt QUESTION` asks about each of them"
        raise MediaError(f"{path}: its subfolders have videos, such as {below}", each)
    hint = f"its subfolders have some, such as {below}" if below else "name a video, or a folder of pictures"
    raise MediaError(f"{path}: no pictures in it", hint)


def natural(name: str) -> list[str | int]:
    """Return a key that sorts names as people number them: 2 before 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


@dataclass(frozen=True)
class _SequenceStatus:
    """The status of pictures that are one video: bytes in all, and a number that changes with each of them."""

    st_size: int
    st_mtime_ns: int


def status_of(path: str) -> Status:
    """Return the status of a file, or of the pictures of a sequence together. Raises MediaError, OSError, ValueError.

    Whatever changes in the name, the size or the time of a picture changes the second number.
    """
    if not is_sequence(path):
        return os.stat(file_of(path))  # noqa: PTH116
    rows = [(name, os.stat(name)) for name in pictures_of(path)[0]]  # noqa: PTH116
    lines = [f"{os.path.basename(name)!r} {each.st_size} {each.st_mtime_ns}" for name, each in rows]  # noqa: PTH119
    number = int(fingerprint("\n".join(lines).encode())[:15], 16)
    return _SequenceStatus(sum(each.st_size for _, each in rows), number)


def may_be_media(suffix: str) -> bool:
    """Return whether files with that ending, in small letters, are videos, sound or pictures."""
    return suffix in _VIDEO_ENDINGS or suffix in _SOUND_ENDINGS or may_be_picture(suffix)


def may_be_picture(suffix: str) -> bool:
    """Return whether files with that ending, in small letters, are pictures that can be read."""
    return suffix in _PICTURE_ENDINGS


def check_file(path: str, wanted: Literal["video", "picture", "file of subtitles"]) -> None:
    """Raise MediaError unless `path` is a regular file that is readable and not empty.

    Pipes and devices are refused: reading one could wait for ever.
    """
    try:
        status = os.stat(file_of(path))  # noqa: PTH116 - a Path costs more
    except FileNotFoundError:
        if Path(path).is_symlink():
            raise MediaError(f"{path}: a link to {Path(path).readlink()}, which is no file") from None
        raise MediaError(f"{path}: no such file", _hint(path)) from None
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"{path}: can't be opened: {words}") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path}: a folder, not a {wanted}", "name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    if not os.access(file_of(path), os.R_OK):
        raise MediaError(f"{path}: can't be opened: Permission denied")


def _hint(path: str) -> str | None:
    """Return a hint for a path that does not exist."""
    if "://" in path:
        return "a URL is fetched only on the command line, as in `llvid ask URL`: download it first"
    if path == "-":
        return "`-` is stdin only on the command line, as in `llvid ask -`: name a file"
    if _NUMBERED.search(path):
        return f"write * for the numbers: '{_NUMBERED.sub('*', path)}'"
    if path.endswith("?"):
        return "give the video first, then the questions"
    folder = Path(path).parent
    try:
        return nearest(
            Path(path).name, (entry.name for entry in islice(folder.iterdir(), _LISTED_NAMES)), least=_SIMILARITY
        )
    except OSError:
        return None
