"""A video that is typed as `-` or as a URL: spooled to a temporary file, bounded, and refused if it is no such thing.

Only what a user typed comes here: paths in files (batch lines, presets, records) are never fetched.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import SplitResult, unquote, urlsplit

from ..errors import LlvidError, MediaError, UsageError
from ..system.files import TMPDIR_HINT, temporary_file
from .files import STDIN, Spooled
from .limits import RAISE_HINT, Deadline, Limits

if TYPE_CHECKING:
    from ..system.download import Host

# What media begin with: mp4, Matroska, AVI, WAV, FLV, Ogg, MPEG, FLAC, MP3 and AAC, AIFF, ASF, AMR.
_MEDIUM = re.compile(
    rb".{4}(ftyp|moov|mdat|free|wide|skip)|\x1aE\xdf\xa3|RIFF.{4}(AVI |WAVE)|FLV\x01|OggS\0|\0\0\x01[\xb3\xba]"
    rb"|G.{187}G|fLaC|ID3[\2-\4]|\xff[\xe2-\xe7\xf0-\xfd]|FORM.{4}AIF|0&\xb2u|#!AMR",
    re.DOTALL,
)
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtmpe", "rtmpt", "rtp", "srtp", "udp", "tcp", "srt", "mms", "mmsh"}
# Of pages with a video; yt-dlp knows more, and any other page tells by its type that it is one.
_PAGES = (
    "youtube.com", "youtu.be", "vimeo.com", "dailymotion.com", "dai.ly", "twitch.tv", "tiktok.com", "bilibili.com",
    "facebook.com", "fb.watch", "instagram.com", "twitter.com", "x.com", "reddit.com", "nicovideo.jp",
)  # fmt: skip
_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_USER = re.compile(r"//[^/@]*@")  # of a URL, with the password
_PIECE_BYTES = 2**20
_HEAD_BYTES = 2**20  # of a file, in which a playlist says whether it ends
_TRIED_BYTES = 2**26  # of standard input, after which FFmpeg has to know what it is
_STALL_SECONDS = 30.0
_PAGE = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)
# Called with what is being read, the bytes so far, and how many there will be, if that is known.
Progress = Callable[[str, int, "int | None"], None]


def is_spooled(typed: str) -> bool:
    """Return whether what was typed for a medium is stdin or a URL."""
    return typed == "-" or is_url(typed)


def is_url(typed: str) -> bool:
    """Return whether what was typed for a medium is a URL."""
    return _SCHEME.match(typed) is not None


def begins_as_medium(content: bytes) -> bool:
    """Return whether bytes are the beginning of a video or of sound, and not a list of paths."""
    return _MEDIUM.match(content) is not None


@contextmanager
def spooled(
    typed: Sequence[str],
    stdin: BinaryIO | None,
    *,
    limits: Limits | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[list[str]]:
    """Give a path for each medium that was typed, in their order, for the `with` block; paths stay as they are.

    `-` is `stdin`, which is read to its end. A URL is fetched: one of http or https; `file://` is a path. Raises
    UsageError, MediaError, and LlvidError for a disk without room.
    """
    if typed.count("-") > 1:
        raise UsageError(f"{STDIN} can be read only once")
    limits = limits or Limits()
    for each in typed:
        _check_url(each)  # before anything is fetched
    with ExitStack() as stack:
        paths = []
        for each in typed:
            if not is_spooled(each):
                paths.append(each)
            elif each.lower().startswith("file://"):
                paths.append(_path_of(each))
            else:
                file = stack.enter_context(temporary_file())
                try:
                    paths.append(_spool(each, stdin, file, limits, progress))
                except OSError as error:
                    raise LlvidError(f"can't write a temporary file: {error.strerror or error}", TMPDIR_HINT) from None
        yield paths


def _spool(typed: str, stdin: BinaryIO | None, file: Path, limits: Limits, progress: Progress) -> Spooled:
    if typed == "-":
        _read_stdin(stdin, file, limits, progress)
    else:
        _fetch(typed, file, limits, progress)
    _check_content(file, typed)
    return Spooled(typed if typed == "-" else _name(typed), str(file))


def _read_stdin(stdin: BinaryIO | None, file: Path, limits: Limits, progress: Progress) -> None:
    if stdin is None:
        raise UsageError(f"can't read the video: {STDIN} is closed")
    if stdin.isatty():
        raise UsageError(f"a video from {STDIN} can't be typed", 'pipe one into it: cat video.mp4 | llvid ask - "..."')
    size, is_tried, began = 0, False, time.monotonic()
    endless = f"if the stream does not end: {_cut('-')}; {RAISE_HINT}"
    _widen(stdin)
    with file.open("wb") as target:
        while True:
            if not _has_more(stdin, began + limits.download_seconds - time.monotonic()):
                raise MediaError(f"{STDIN} did not end within {limits.download_seconds:,} seconds", endless)
            if not (piece := _piece(stdin)):
                break
            size += len(piece)
            if size > limits.download_bytes:
                raise MediaError(f"more than {limits.download_bytes:,} bytes came from {STDIN}", endless)
            target.write(piece)
            if size >= _TRIED_BYTES and not is_tried:
                is_tried = True
                _try(file, limits)
            progress(STDIN, size, None)
    if not size:
        raise MediaError(f"nothing came from {STDIN}", "the program before the | may have failed")


def _try(file: Path, limits: Limits) -> None:
    """Raise MediaError for the beginning of what is no medium: the rest of it, which may have no end, is not read."""
    from .demux import open_container
    from .image import is_picture

    _check_content(file, "-")
    with file.open("rb") as source:
        if source.read(8)[4:] in _MP4_BOXES:
            return  # its header may be at its end
    begun = Spooled("-", str(file))
    if not is_picture(begun):
        with open_container(begun, Deadline(begun, limits)):
            pass


def _widen(stdin: BinaryIO) -> None:
    """Let a pipe hold more, where the system can: both sides then wait for each other 16 times less often."""
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):  # it is no pipe, or the user's pipes hold much already
            fcntl.fcntl(stdin.fileno(), fcntl.F_SETPIPE_SZ, _PIECE_BYTES)


def _has_more(stdin: BinaryIO, seconds: float) -> bool:
    """Wait at most so long for bytes, or for the end; on Windows, where only sockets can be waited for, don't wait."""
    return seconds > 0 and (sys.platform == "win32" or bool(select.select([stdin], [], [], seconds)[0]))


def _piece(stdin: BinaryIO) -> bytes:
    try:
        return os.read(stdin.fileno(), _PIECE_BYTES)
    except OSError as error:
        raise MediaError(f"{STDIN} can't be read: {error.strerror}") from None


def redirect_rule(url: str) -> Callable[[str], Host]:
    """Return what checks a typed URL, and then each one that it redirects to, and gives the host.

    The typed one may be anywhere. Redirects lead into a private network only where the typed host is in one. Raises
    MediaError, and UsageError for what is no URL of the web.
    """
    from ..system.download import Host

    hosts: list[Host] = []

    def allow(each: str) -> Host:
        try:
            parts = _check_url(each)
        except UsageError as error:
            if not hosts:
                raise
            raise MediaError(f"{_name(url)} redirects to a wrong address: {error}") from None
        if parts is None or parts.hostname is None or parts.scheme.lower() == "file":
            raise MediaError(f"{_name(url)} redirects to {each}, which is not on the web")
        host = Host(parts.hostname, parts.port or (443 if parts.scheme.lower() == "https" else 80))
        if hosts and host.is_private and not hosts[0].is_private:
            words = f"{_name(url)} leads to {host.name}, which is inside a private network"
            raise MediaError(words, "type that address if you mean it")
        hosts.append(host)
        return host

    return allow


def _fetch(url: str, file: Path, limits: Limits, progress: Progress) -> None:
    from ..system.download import DownloadBounds, OutOfBoundsError, download

    def accept(kind: str) -> None:
        if kind in _PAGE_TYPES:
            raise _page(url)
        if kind == "multipart/x-mixed-replace":
            raise _live(url)

    bounds = DownloadBounds(limits.download_bytes, limits.download_seconds, _STALL_SECONDS)
    typed = urlsplit(url)
    user = (unquote(typed.username), unquote(typed.password or "")) if typed.username else None
    try:
        download(
            url, file, bounds, redirect_rule(url), accept=accept, credentials=user,
            progress=lambda size, whole: progress(_name(url), size, whole),
        )  # fmt: skip
    except OutOfBoundsError as error:
        raise MediaError(str(error), f"if the stream does not end: {_cut(url)}; {RAISE_HINT}") from None


def _check_url(typed: str) -> SplitResult | None:
    """Return the parts of a URL; None for what is none. Raises UsageError or MediaError for one that is not read."""
    if not (match := _SCHEME.match(typed)):
        return None
    scheme = match[1].lower()
    try:
        parts = urlsplit(typed)
        host, _ = (parts.hostname or "").rstrip("."), parts.port
        if scheme != "file":
            typed.encode()  # a byte that is not UTF-8 can't be sent; a path may have it
    except ValueError:
        raise UsageError(f"not a URL: {_USER.sub('//', typed)}") from None
    if scheme in _LIVE_SCHEMES:
        raise _live(typed)
    if scheme not in ("http", "https", "file"):
        raise UsageError(f"{scheme}:// can't be read: use http://, https:// or file://")
    if scheme == "file":
        if host not in ("", "localhost") or not parts.path:
            raise UsageError(f"a file: URL must look like file:///PATH, got {typed}")
    elif not host:
        raise UsageError(f"a URL must look like https://HOST/PATH, got {_name(typed)}")
    elif any(host == page or host.endswith(f".{page}") for page in _PAGES):
        raise _page(typed)
    return parts


def _check_content(file: Path, typed: str) -> None:
    """Raise MediaError for what is no video, but the way to one."""
    with file.open("rb") as source:
        head = source.read(_HEAD_BYTES)
    if head.lstrip(b"\xef\xbb\xbf").startswith(b"#EXTM3U"):
        if b"#EXT-X-ENDLIST" in head or b"#EXT-X-STREAM-INF" in head:
            raise _playlist(typed)
        raise _live(typed)
    if b"<MPD" in head[:4096]:
        raise _live(typed) if b'"dynamic"' in head[:4096] else _playlist(typed)
    if _PAGE.match(head):
        raise _page(typed)


def _page(typed: str) -> MediaError:
    url = "URL" if typed == "-" else shlex.quote(_without_user(typed))
    return MediaError(f"{_name(typed)}: a web page, not a video file", f'yt-dlp -o - {url} | llvid ask - "..."')


def _live(typed: str) -> MediaError:
    return MediaError(f"{_name(typed)}: a live stream, which does not end", _cut(typed))


def _playlist(typed: str) -> MediaError:
    url = "URL" if typed == "-" else shlex.quote(_without_user(typed))
    return MediaError(
        f"{_name(typed)}: a playlist, whose pieces are other files",
        f"ffmpeg -i {url} -c copy clip.mkv makes one file of it, and -t 60 before -i takes a minute",
    )


def _cut(typed: str) -> str:
    url = "URL" if typed == "-" else shlex.quote(_without_user(typed))
    return f"ffmpeg -t 60 -i {url} -c copy clip.mkv takes a minute of it"


def _path_of(url: str) -> str:
    return os.fsdecode(unquote(urlsplit(url).path, errors="surrogateescape").encode(errors="surrogateescape"))


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _name(typed: str) -> str:
    """Return what messages and records call it: a URL without user, password, and what follows a `?` or `#`."""
    if typed == "-":
        return STDIN
    parts = urlsplit(typed)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
