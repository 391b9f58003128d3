"""Videos from stdin and from URLs: spooled whole, bounded; what is something else gets the next step."""

from __future__ import annotations

import io
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from clips import make_clip, picture
from PIL import Image
from sounds import make_film

from llava_video_cli import Limits, LlvidError, MediaError, Sampling, UsageError, read_frames
from llava_video_cli.video import spool
from llava_video_cli.video.files import file_of
from llava_video_cli.video.image import is_picture
from llava_video_cli.video.spool import begins_as_medium, redirect_rule, spooled


class Web(ThreadingHTTPServer):
    """A server on this machine; `pages` has what it does for each path. `asked` are the headers of the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def serve(
        self,
        path: str,
        content: bytes,
        kind: str = "video/mp4",
        status: int = 200,
        length: int | None = None,
        **headers: str,
    ) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(content) if length is None else length))
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)

        self.pages[path] = answer


class _Handler(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(self.headers)
        try:
            self.server.pages[self.path](self)
        except OSError:  # the client has left
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of the test's own, which is empty at its end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clip") / "a.mp4").read_bytes()


def piped(content: bytes | Iterable[bytes]) -> BinaryIO:
    """A pipe that somebody writes the content to, maybe in pieces."""
    reader, writer = os.pipe()

    def write() -> None:
        try:
            with os.fdopen(writer, "wb") as file:
                for piece in [content] if isinstance(content, bytes) else content:
                    file.write(piece)
                    file.flush()
        except BrokenPipeError:
            pass

    threading.Thread(target=write, daemon=True).start()
    return os.fdopen(reader, "rb")


def waiting(content: bytes) -> Iterator[bytes]:
    """The content, and then nothing for a while."""
    yield content
    threading.Event().wait(20)


def refused(typed: str, stdin: BinaryIO | None = None, limits: Limits | None = None) -> tuple[str, str]:
    """The error of what was typed, and its hint."""
    with pytest.raises(LlvidError) as error, spooled([typed], stdin, limits=limits):
        pass
    assert "\n" not in str(error.value)
    return str(error.value), error.value.hint or ""


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.webm"])
def test_any_container_comes_from_a_pipe(tmp_path: Path, name: str) -> None:
    path = make_clip(tmp_path / name, codec="libvpx" if name.endswith("webm") else "libx264")  # mp4: the header is last
    seen: list[tuple[str, int, int | None]] = []
    with piped(path.read_bytes()) as pipe, spooled(["-"], pipe, progress=lambda *each: seen.append(each)) as (source,):
        read = read_frames(source, Sampling(4))
        assert source == "standard input" == read.info.path
    assert (read.images == read_frames(path, Sampling(4)).images).all()
    assert seen[-1] == ("standard input", path.stat().st_size, None)


def test_a_file_may_be_stdin(tmp_path: Path, clip: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(clip)
    with path.open("rb") as file, spooled(["-"], file, limits=Limits(download_bytes=len(clip))) as (source,):
        assert Path(file_of(source)).read_bytes() == clip
    with path.open("ab") as written:
        assert refused("-", written)[0] == "standard input can't be read: Bad file descriptor"


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", None), ("a.mkv", None), ("a.avi", None), ("a.flv", None), ("a.ts", None), ("a.asf", "wmv2"),
        ("a.ogv", "libvpx"), ("a.mpg", "mpeg1video"), ("a.m1v", "mpeg1video"), ("a.wav", "pcm_s16le"),
        ("a.aiff", "pcm_s16be"), ("a.flac", "flac"), ("a.mp3", "libmp3lame"), ("a.aac", "aac"), ("a.ogg", "libopus"),
    ],
)  # fmt: skip
def test_the_first_bytes_of_media(tmp_path: Path, name: str, codec: str | None) -> None:
    path = tmp_path / name
    if path.suffix in (".wav", ".aiff", ".flac", ".mp3", ".aac", ".ogg"):
        make_film(path, (), 0.5, codec=codec or "", video_codec=None)
    else:
        make_clip(path, range(8), codec=codec or "libx264")
    assert begins_as_medium(path.read_bytes()[:200])
    assert begins_as_medium(b"RIFF\n\n\0\0AVI "), "a size may have any byte"


@pytest.mark.parametrize("text", [b"a.mp4\nb.mp4\n", b"Group one.mp4\n" * 20, b"RIFFs/one.mp4\n", b"# ftyp\n"])
def test_lists_of_paths_are_no_media(text: bytes) -> None:
    assert not begins_as_medium(text)


def test_what_is_no_video_from_stdin_is_one_line() -> None:
    assert refused("-", None) == ("can't read the video: standard input is closed", "")
    assert refused("-", piped(b""))[0] == "nothing came from standard input"
    message, hint = refused("-", piped(bytes(2000)), Limits(download_bytes=1000))
    assert (
        message == "more than 1,000 bytes came from standard input"
        and "ffmpeg -t 60" in hint
        and "LLVID_LIMITS" in hint
    )
    assert "a web page" in refused("-", piped(b"\n<!DOCTYPE html><html>"))[0]
    not_a_video = pytest.raises(MediaError, match=r"^standard input: not a video")
    with piped(b"words") as pipe, spooled(["-"], pipe) as (source,), not_a_video:
        read_frames(source)
    with pytest.raises(UsageError, match="only once"), spooled(["-", "-"], None):
        pass


def test_what_never_ends_is_refused_as_soon_as_it_is_known_to_be_no_video(
    clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    endless = itertools.repeat(bytes(2**20))
    no_video = pytest.raises(MediaError, match=r"^standard input: not a video")
    with piped(endless) as pipe, no_video, spooled(["-"], pipe, progress=lambda _, size, __: seen.append(size)):
        pass
    assert max(seen) < 80 * 2**20
    padding = bytes(70 * 2**20)
    late = clip.replace(b"free", b"skip", 1) + (len(padding) + 8).to_bytes(4, "big") + b"free" + padding
    assert late.index(b"mdat") < late.index(b"moov"), "nothing can be read before the end"
    with piped(late) as pipe, spooled(["-"], pipe) as (source,):
        assert len(read_frames(source, Sampling(2)).images) == 2
    stream = make_clip(tmp_path / "a.ts").read_bytes()
    message, hint = refused("-", piped(itertools.repeat(stream)), Limits(download_bytes=70 * 2**20))
    assert message.startswith("more than") and "ffmpeg -t 60" in hint
    moments = itertools.chain([0.0, 0.0], itertools.repeat(0.9))  # but for a tenth of a second, the time is over
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    message, hint = refused("-", piped(waiting(clip)), Limits(download_seconds=1))
    assert message == "standard input did not end within 1 seconds" and "ffmpeg -t 60" in hint


def test_the_beginning_of_what_never_ends_tells_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_TRIED_BYTES", 2**16)
    assert "a web page" in refused("-", piped(itertools.chain([b"<html>"], itertools.repeat(bytes(2**16)))))[0]
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    padded = (tmp_path / "a.png").read_bytes() + bytes(2**18)
    with piped(padded) as pipe, spooled(["-"], pipe) as (source,):
        assert is_picture(source)


def test_the_time_may_be_over_before_the_next_bytes_come(monkeypatch: pytest.MonkeyPatch, clip: bytes) -> None:
    moments = itertools.chain([0.0, 0.0], itertools.repeat(2.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(moments))
    message, _ = refused("-", piped(clip), Limits(download_seconds=1))
    assert message == "standard input did not end within 1 seconds"


def test_a_terminal_is_no_video() -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    message, hint = refused("-", Terminal())
    assert message == "a video from standard input can't be typed" and "cat video.mp4 | llvid ask -" in hint


PLAYLISTS = {
    "live.m3u8": (b"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile:///etc/passwd\n", "a live stream", "-t 60"),
    "film.m3u8": (b"#EXTM3U\n#EXTINF:4,\nSECRET\n#EXT-X-ENDLIST\n", "a playlist", "ffmpeg -i"),
    "master.m3u8": (b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow.m3u8\n", "a playlist", "ffmpeg -i"),
    "marked.m3u8": (b"\xef\xbb\xbf#EXTM3U\n#EXTINF:4,\na.ts\n#EXT-X-ENDLIST\n", "a playlist", "ffmpeg -i"),
    "long.m3u8": (b"#EXTM3U\n" + b"#EXTINF:4,\na.ts\n" * 1000 + b"#EXT-X-ENDLIST\n", "a playlist", "ffmpeg -i"),
    "live.mpd": (b'<?xml version="1.0"?><MPD type="dynamic"></MPD>', "a live stream", "-t 60"),
    "film.mpd": (b'<?xml version="1.0"?><MPD type="static"></MPD>', "a playlist", "ffmpeg -i"),
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_no_videos(web: Web, name: str) -> None:
    content, words, way = PLAYLISTS[name]
    web.serve(f"/{name}", content, "application/vnd.apple.mpegurl")
    for typed, stdin in ((f"{web.url}/{name}", None), ("-", piped(content))):
        message, hint = refused(typed, stdin)
        assert words in message and way in hint


@pytest.mark.parametrize(
    "content",
    [
        b"ffconcat version 1.0\nfile {path}\n", b"file '{path}'\n", b"v=0\nm=video 5004 RTP/AVP 96\n",
        b"\xef\xbb\xbfffconcat version 1.0\nfile file:{path}\n",
    ],
)  # fmt: skip
def test_ffmpeg_opens_no_other_file(tmp_path: Path, clip: bytes, content: bytes) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(clip)
    written = content.replace(b"{path}", str(secret).encode())
    with piped(written) as pipe, spooled(["-"], pipe) as (source,), pytest.raises(MediaError, match="not a video"):
        read_frames(source)


def test_a_url_is_fetched_and_nothing_stays(web: Web, clip: bytes) -> None:
    web.serve("/clip.mp4?token=secret", clip)
    web.serve("/old.mp4", b"", status=302, Location="/clip.mp4?token=secret")
    seen: list[tuple[str, int, int | None]] = []
    for typed in (f"{web.url}/old.mp4", f"http://me:word@{web.url[7:]}/clip.mp4?token=secret#t=1"):
        with spooled([typed], None, progress=lambda *each: seen.append(each)) as (source,):
            assert read_frames(source, Sampling(2)).images.shape == (2, 64, 96, 3)
            assert oct(Path(file_of(source)).stat().st_mode)[-3:] == "600"
        assert source == f"{web.url}/{'old' if typed.endswith('old.mp4') else 'clip'}.mp4", "no password, no token"
    assert seen[-1][1:] == (len(clip), len(clip))
    assert [headers["Authorization"] for headers in web.asked] == [None, None, "Basic bWU6d29yZA=="]


@pytest.mark.parametrize(
    ("user", "sent"), [("me", "Basic bWU6"), ("me%40home:a%2Fb", "Basic bWVAaG9tZTphL2I=")], ids=["name", "coded"]
)
def test_credentials_as_they_are_sent(web: Web, clip: bytes, user: str, sent: str) -> None:
    web.serve("/clip.mp4", clip)
    with spooled([f"http://{user}@{web.url[7:]}/clip.mp4"], None):
        assert web.asked[0]["Authorization"] == sent


def test_nothing_is_fetched_before_all_is_checked(web: Web, clip: bytes) -> None:
    web.serve("/clip.mp4", clip)
    with (
        pytest.raises(UsageError, match="ftp:// can't be read"),
        spooled([f"{web.url}/clip.mp4", "ftp://host/a"], None),
    ):
        pass
    assert not web.asked


def test_credentials_are_not_sent_on(web: Web, clip: bytes) -> None:
    web.serve("/clip.mp4", clip)
    web.serve("/old.mp4", b"", status=301, Location=f"{web.url}/clip.mp4")
    with spooled([f"http://me:word@{web.url[7:]}/old.mp4"], None):
        pass
    assert [headers["Authorization"] is None for headers in web.asked] == [False, True]


def test_a_file_url_is_a_path(tmp_path: Path, clip: bytes) -> None:
    path = tmp_path / "a b.mp4"
    path.write_bytes(clip)
    with spooled([path.as_uri(), f"file://localhost{path}".replace(" ", "%20"), "x.mp4"], None) as paths:
        assert paths == [str(path), str(path), "x.mp4"] and {type(each) for each in paths} == {str}
    with spooled(["FILE:///a.mp4", "file:///%ff.mp4"], None) as paths:
        assert paths == ["/a.mp4", os.fsdecode(b"/\xff.mp4")]
    for url in ("file://elsewhere/a.mp4", "file://localhost"):
        assert "must look like file:///PATH" in refused(url)[0]


@pytest.mark.parametrize(
    "url",
    [
        "https://www.youtube.com/watch?v=a&t=1",
        "https://youtu.be/abc",
        "https://vimeo.com/1",
        "http://user:pw@x.com/a",
        "https://www.youtube.com./watch?v=a",
    ],
)
def test_pages_get_the_line_to_type(url: str) -> None:
    message, hint = refused(url)
    assert "a web page, not a video file" in message and hint.startswith("yt-dlp -o - ")
    assert hint.endswith('| llvid ask - "..."')
    assert "pw" not in message + hint


def test_a_host_may_end_as_a_page_s_does() -> None:
    assert redirect_rule("https://netflix.com/a.mp4")("https://netflix.com/a.mp4").name == "netflix.com", "not x.com"


def test_a_page_is_known_by_its_type(web: Web) -> None:
    web.serve("/watch?v=1", b"<html>", "text/html; charset=utf-8")
    web.serve("/strict", b"", "application/xhtml+xml")
    assert "a web page" in refused(f"{web.url}/strict")[0]
    assert refused(f"{web.url}/watch?v=1")[1] == f"yt-dlp -o - '{web.url}/watch?v=1' | llvid ask - \"...\""


def test_what_is_no_url_shows_no_password() -> None:
    assert refused("http://me:word@host:port/a.mp4")[0] == "not a URL: http://host:port/a.mp4"
    assert "must look like https://HOST/PATH" in refused("https://me:word@/a.mp4")[0]


def test_schemes_of_live_streams_and_others(web: Web) -> None:
    for url in ("rtsp://cam/1", "rtmp://host/app", "udp://239.0.0.1:1", "SRT://host:1"):
        message, hint = refused(url)
        assert "a live stream" in message and hint.startswith("ffmpeg -t 60 -i ")
    assert "ftp:// can't be read" in refused("ftp://host/a.mp4")[0]
    web.serve("/camera", b"--frame", "multipart/x-mixed-replace; boundary=frame")
    message, hint = refused(f"{web.url}/camera")
    assert "a live stream" in message and hint.startswith(f"ffmpeg -t 60 -i {web.url}/camera ")


def test_a_download_is_bounded(web: Web) -> None:
    web.serve("/large", b"", length=2000)
    message, hint = refused(f"{web.url}/large", limits=Limits(download_bytes=1000))
    assert "larger than 1,000 bytes" in message and "LLVID_LIMITS" in hint

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1000))

    web.pages["/endless"] = endless
    assert "larger than" in refused(f"{web.url}/endless", limits=Limits(download_bytes=10**6))[0]
    message, hint = refused(f"{web.url}/endless", limits=Limits(download_seconds=0))
    assert "sends too slowly" in message and "ffmpeg -t 60" in hint


def test_what_fails_on_the_way_is_one_line(web: Web, clip: bytes) -> None:
    web.serve("/short", clip[:1000], length=len(clip))
    web.serve("/gone", b"", status=404)
    web.serve("/circle", b"", status=302, Location="/circle")
    assert "the connection to 127.0.0.1 failed: peer closed" in refused(f"{web.url}/short")[0]
    assert refused("http://127.0.0.1:9/x.mp4")[0] == "the connection to 127.0.0.1 failed: Connection refused"
    assert "answered with status 404" in refused(f"{web.url}/gone")[0]
    assert "redirects more than" in refused(f"{web.url}/circle")[0]
    assert "there is no host nowhere.invalid" in refused("http://nowhere.invalid/a.mp4")[0]
    for target, words in (
        ("file:///etc/passwd", "not on the web"), ("file://localhost/etc/passwd", "not on the web"),
        ("ftp://host/a", "can't be read"), ("rtsp://host/a", "a live stream"),
    ):  # fmt: skip
        web.serve("/away", b"", status=302, Location=target)
        assert words in refused(f"{web.url}/away")[0]


@pytest.mark.parametrize(
    "inside", ["http://127.0.0.1/", "http://localhost:8000/", "http://10.1.2.3/", "http://169.254.169.254/latest",
               "http://[::1]/", "http://[::ffff:192.168.1.1]/", "http://[64:ff9b::10.0.0.1]/", "http://0.0.0.0/"],
)  # fmt: skip
def test_no_redirect_leads_into_a_private_network(inside: str) -> None:
    rule = redirect_rule("https://93.184.216.34/clip.mp4")
    rule("https://93.184.216.34/clip.mp4")
    with pytest.raises(MediaError, match="inside a private network"):
        rule(inside)
    typed = redirect_rule("http://192.168.1.2/")
    assert typed("http://192.168.1.2/").is_private
    typed("https://93.184.216.34/")
    typed(inside)  # whoever types a private address means that network


def test_a_name_is_looked_up_once_and_each_address_is_tried(
    monkeypatch: pytest.MonkeyPatch, web: Web, clip: bytes
) -> None:
    real, answers = socket.getaddrinfo, [("127.0.0.2", "127.0.0.1"), ("10.0.0.1",)]  # nothing listens at the first

    def look_up(name: str, port: int, *more: Any, **options: Any) -> list[Any]:
        names = answers.pop(0) if name == "rebinding.test" else (name,)
        return [entry for each in names for entry in real(each, port, *more, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    web.serve("/clip.mp4", clip)
    with spooled([f"http://rebinding.test:{web.server_address[1]}/clip.mp4"], None) as (source,):
        assert len(read_frames(source, Sampling(2)).images) == 2
    assert len(answers) == 1 and web.asked[0]["Host"] == f"rebinding.test:{web.server_address[1]}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, clip: bytes, temporary: Path) -> None:
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(temporary / "full")))
    (temporary / "full").symlink_to("/dev/full")
    message, hint = refused("-", piped(clip))
    assert message.startswith("can't write") and "No space left" in message and "TMPDIR" in hint
