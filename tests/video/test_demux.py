"""Opening a file: which stream is read, what is refused, and within which limits."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import pytest
from av.stream import Disposition
from clips import make_clip, picture, sample
from sounds import make_film

from llava_video_cli.errors import MediaError
from llava_video_cli.video import probe, read_frames
from llava_video_cli.video.demux import MAX_READ_ERRORS, demux, demux_all, open_video
from llava_video_cli.video.limits import Deadline, Limits
from llava_video_cli.video.sampling import Sampling


def deadline(path: Path, **limits: Any) -> Deadline:
    return Deadline(str(path), Limits(**limits))


def make_two(path: Path, first: int, is_default: bool, **options: str) -> Path:
    """Write a file with two videos: so many small pictures, which are the default or not, and 24 larger ones."""
    with av.open(str(path), "w", options=options) as container:
        streams: list[Any] = []
        for width, height, default in ((96, 64, is_default), (320, 192, True)):
            stream: Any = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = Disposition.default if default else Disposition(0)
            streams.append(stream)
        for stream, count in zip(streams, (first, 24), strict=True):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(picture(number, stream.width, stream.height), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 24)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("first", "is_default"), [(24, False), (1, True)], ids=["not default", "one picture"])
def test_the_best_of_several_videos_is_read(tmp_path: Path, suffix: str, first: int, is_default: bool) -> None:
    """FFmpeg has to decode pictures of each to find it."""
    path = make_two(tmp_path / f"a.{suffix}", first, is_default)
    with open_video(str(path), deadline(path), probe=False) as video:
        assert (video.context.width, video.context.height, video.is_probed) == (320, 192, True)
    assert read_frames(path, Sampling(2)).images.shape == (2, 192, 320, 3)


def test_videos_in_fragments_have_no_packets_in_the_header(tmp_path: Path) -> None:
    path = make_two(tmp_path / "a.mp4", 24, False, movflags="empty_moov+frag_keyframe+delay_moov")
    assert read_frames(path, Sampling(2)).images.shape == (2, 192, 320, 3)


def test_an_empty_track_is_no_second_video() -> None:
    path = sample("empty_track.mp4")
    with open_video(str(path), deadline(path), probe=False) as video:
        assert not video.is_probed


def test_pictures_that_are_a_cover_are_no_video(tmp_path: Path) -> None:
    film, path = make_clip(tmp_path / "film.mp4"), tmp_path / "covered.mp4"
    cover = make_clip(tmp_path / "cover.avi", range(1), codec="mjpeg", size=(640, 480))
    for with_film in (True, False):
        with av.open(str(film)) as reading, av.open(str(cover)) as art, av.open(str(path), "w") as writing:
            beside: Any = writing.add_stream_from_template(art.streams.video[0])
            beside.disposition = Disposition.attached_pic
            copied = writing.add_stream_from_template(reading.streams.video[0]) if with_film else None
            for packet in [*art.demux(video=0), *reading.demux(video=0)]:
                stream = copied if packet.stream is reading.streams.video[0] else beside
                if packet.size and stream is not None:
                    packet.stream = stream
                    writing.mux(packet)
        if with_film:
            assert probe(path).width == 96
        else:
            with pytest.raises(MediaError, match=r"no video stream \(only cover art\)"):
                probe(path)


def test_what_is_known_of_reordering_without_a_probe(tmp_path: Path) -> None:
    """FFmpeg decodes pictures of a transport stream in any case."""
    for name, is_probed in (("a.ts", True), ("a.mp4", False), ("a.mkv", False)):
        path = make_clip(tmp_path / name)
        with open_video(str(path), deadline(path), probe=False) as video:
            assert video.is_probed == is_probed


def test_what_can_t_be_opened_is_told(tmp_path: Path) -> None:
    unknown = make_clip(tmp_path / "a.mkv")
    unknown.write_bytes(unknown.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NONE5/ISO/AVC"))
    with pytest.raises(MediaError, match="its video codec is unknown to FFmpeg"):
        probe(unknown)
    path = make_clip(tmp_path / "b.mp4")
    with (
        pytest.raises(MediaError, match="pictures of 96x64 are too large"),
        open_video(str(path), deadline(path, pixels=96 * 64 - 1)),
    ):
        pass
    with pytest.raises(MediaError, match=r"b\.mp4: can't be read: broken"), open_video(str(path), deadline(path)):
        raise av.error.InvalidDataError(errno.EIO, "broken")


def test_an_animation_has_the_limits_of_a_picture(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.gif", range(3), codec="gif")
    for limits, seconds in (({}, 60), ({"seconds": None}, 60), ({"seconds": 5.0}, 5.0)):
        with open_video(str(path), deadline(path, cores=2, **limits)) as video:
            assert (video.deadline.limits.seconds, video.deadline.limits.cores) == (seconds, 1)


def test_matroska_tells_that_a_video_is_encrypted(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mkv", (), 0.5)
    with open_video(str(path), deadline(path)) as video:
        assert video.fault() is None
    with av.open(str(path)) as reading, av.open(str(tmp_path / "b.mkv"), "w") as writing:
        copied = writing.add_stream_from_template(reading.streams.video[0])
        copied.metadata["enc_key_id"] = "a key"  # as FFmpeg calls what is in ContentEncKeyID
        for packet in reading.demux(video=0):
            if packet.size:
                packet.stream = copied
                writing.mux(packet)
    encrypted = tmp_path / "b.mkv"
    encrypted.write_bytes(encrypted.read_bytes().replace(b"ENC_KEY_ID", b"enc_key_id"))
    with open_video(str(encrypted), deadline(encrypted)) as video:
        assert video.fault() == "the video is encrypted"


class Broken:
    """A container that gives only errors."""

    def __init__(self, error: Exception) -> None:
        self._error, self._asked = error, 0

    def demux(self, _: object) -> Iterator[Any]:
        self._asked += 1
        assert self._asked <= MAX_READ_ERRORS
        raise self._error
        yield


def test_a_container_that_gives_only_errors_is_given_up(tmp_path: Path) -> None:
    path, errors = make_clip(tmp_path / "a.mp4"), list[str]()
    broken: Any = Broken(av.error.InvalidDataError(errno.EIO, "broken"))
    renumbered: Any = Broken(IndexError())  # PyAV's, for a stream that was not there at first
    with open_video(str(path), deadline(path)) as video:
        assert list(demux_all(replace(video, container=broken), errors)) == []
        assert errors == ["broken"] * MAX_READ_ERRORS
        assert list(demux(replace(video, container=renumbered))) == []
