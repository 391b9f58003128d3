"""Files that containers or decoders describe wrongly: the frames are still those of a full sequential decode."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import av
import pytest
from av.bitstream import BitStreamFilterContext
from clips import (
    assert_same,
    copy_packets,
    decode_all,
    digest,
    faulty,
    make_clip,
    make_indexed,
    picture,
)

from llava_video_cli.errors import MediaError
from llava_video_cli.video import Frames, check_video, iter_frames, probe, read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.sampling import Sampling

QCIF = (176, 144)
SIZES = {"h261": QCIF, "h263": (128, 96), "cinepak": (48, 32)}  # the first two know few, and one encodes slowly
FALSE_KEYFRAMES = {
    "h263.avi": "h263", "h263.3gp": "h263", "h261.avi": "h261", "mpeg4.mp4": "mpeg4", "msmpeg4v2.avi": "msmpeg4v2",
    "msmpeg4v3.avi": "msmpeg4", "wmv1.avi": "wmv1", "wmv2.avi": "wmv2", "flv1.flv": "flv", "cinepak.mov": "cinepak",
    "rpza.mov": "rpza", "flashsv.flv": "flashsv", "qtrle.mov": "qtrle", "apng.apng": "apng",
}  # fmt: skip
# Their encoders need nothing of earlier pictures, as all of each of our pictures changes.
WHOLE = {"cinepak.mov", "rpza.mov", "flashsv.flv", "qtrle.mov"}


def x264(parameters: str) -> dict[str, Any]:
    return {"x264-params": parameters}


def flag_all(path: Path) -> Path:
    """Flag every packet as a keyframe."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".avi":
        at = content.rindex(b"idx1") + 8
        while content[at + 2 : at + 4] == b"dc":
            content[at + 4] |= 0x10
            at += 16
    elif path.suffix in (".mp4", ".mov", ".3gp") and b"stss" in content:
        at = content.index(b"stss")
        content[at : at + 4] = b"free"
    elif path.suffix == ".flv":
        at = 13
        while at + 11 < len(content):
            size = int.from_bytes(content[at + 1 : at + 4], "big")
            if content[at] == 9:
                content[at + 11] = content[at + 11] & 0x0F | 0x10
            at += 15 + size
    path.write_bytes(content)
    return path


def evenly(total: int, count: int) -> list[int]:
    return [i * total // count for i in range(count)]


def assert_like_a_full_decode(clip: Path, total: int, seconds: float) -> None:
    """Check whole videos and parts, read together, one at a time and with a resize."""
    oracle = decode_all(clip)
    assert len(oracle) == total
    for n in (2, 8, 32):
        frames = read_frames(clip, Sampling(frames=n))
        assert_same(frames, oracle, evenly(total, min(n, total)))
        assert frames.info.duration_seconds == pytest.approx(seconds, abs=0.002)
        if n == 2:
            continue
        small = read_frames(clip, Sampling(frames=n), resize=lambda image: image[::2, ::2].copy())
        assert [digest(image) for image in small.images] == [digest(image[::2, ::2]) for image in frames.images]
        single = list(iter_frames(clip, Sampling(frames=n)))
        assert [digest(frame.image) for frame in single] == [digest(image) for image in frames.images]
        assert tuple(frame.time_seconds for frame in single) == frames.times_seconds == small.times_seconds
    start, end = 0.3 * seconds, 0.7 * seconds
    frames = read_frames(clip, Sampling(frames=3, start_seconds=start, end_seconds=end))
    shown = [round(time * total / seconds) for time in frames.times_seconds]
    assert_same(frames, oracle, shown)
    assert shown == [int(total * (0.3 + 0.4 * i / 3) + 1e-6) for i in range(3)]
    assert probe(clip).duration_seconds == pytest.approx(seconds, abs=0.002)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in WHOLE else name for name in FALSE_KEYFRAMES]
)
def test_a_keyframe_flag_alone_is_not_believed(tmp_path: Path, name: str) -> None:
    codec = FALSE_KEYFRAMES[name]
    clip = flag_all(make_clip(tmp_path / name, range(48), codec=codec, size=SIZES.get(codec, (96, 64)), g="12"))
    with av.open(str(clip)) as container:
        assert name == "apng.apng" or all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert_like_a_full_decode(clip, 48, 2.0)


@pytest.mark.parametrize("name", ["h263_plain_ffmpeg.avi", "mpeg4_without_stss.mp4", "msmpeg4v3_all_flagged_key.avi"])
def test_inputs_with_false_keyframes(name: str) -> None:
    assert_like_a_full_decode(faulty(name), 50, 2.0)


@pytest.mark.parametrize("cores", [1, 2])
def test_false_keyframes_are_no_damage(tmp_path: Path, cores: int) -> None:
    """A part that begins at one is decoded again, without an error."""
    clip = flag_all(make_clip(tmp_path / "clip.mp4", range(60), codec="mpeg4", size=(320, 192), g="20", b="40M"))
    frames = read_frames(clip, Sampling(frames=30), limits=Limits(cores=cores))
    assert_same(frames, decode_all(clip), evenly(60, 30))
    assert frames.notes == ()


def test_false_keyframes_are_found_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What decoders share is decoded again in one go, not for each part from the start."""
    clip = flag_all(make_clip(tmp_path / "clip.mp4", range(60), codec="mpeg4", size=(320, 192), g="20", b="40M"))
    with caplog.at_level("DEBUG", "llava_video_cli.video.decode"):
        frames = read_frames(clip, Sampling(frames=60), limits=Limits(cores=2))
    assert_same(frames, decode_all(clip), list(range(60)))
    assert caplog.text.count("is decoded again") <= 1


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "mpeg4"), ("clip.avi", "mpeg4"), ("clip.flv", "flv")])
def test_keyframes_are_those_that_the_decoder_calls_so(tmp_path: Path, name: str, codec: str) -> None:
    clip = flag_all(make_clip(tmp_path / name, range(48), codec=codec, g="12"))
    with av.open(str(clip)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert 1 < len(keys) < 8
    frames = read_frames(clip, Sampling(frames=48, mode="keyframes"))
    assert_same(frames, decode_all(clip), keys)
    single = iter_frames(clip, Sampling(frames=48, mode="keyframes"))
    assert [digest(frame.image) for frame in single] == [digest(image) for image in frames.images]


def test_a_phone_s_h263() -> None:
    clip = faulty("mp4parser_MOV00006.3gp")
    frames = read_frames(clip, Sampling(frames=8))
    assert_same(frames, decode_all(clip), [0, 24, 53, 80, 106, 132, 161, 187])
    assert frames.notes == read_frames(clip, Sampling(frames=32)).notes == ()


@pytest.mark.usefixtures("only_what_is_needed")
def test_true_keyframes_are_still_used(tmp_path: Path) -> None:
    for name in ("mpeg4.mp4", "mpeg4.mkv", "mpeg4.avi"):
        clip = make_clip(tmp_path / name, range(48), codec="mpeg4", g="8")
        assert_same(read_frames(clip, Sampling(frames=4)), decode_all(clip), evenly(48, 4))


@pytest.mark.parametrize(("name", "codec"), [("clip.h264", "libx264"), ("clip.drc", "vc2")])
def test_raw_streams_have_their_own_rate(tmp_path: Path, name: str, codec: str) -> None:
    clip = make_clip(tmp_path / name, range(24), codec=codec, b="4M")
    frames = read_frames(clip, Sampling(frames=4))
    assert_same(frames, decode_all(clip), evenly(24, 4))
    assert frames.times_seconds == pytest.approx((0.0, 0.25, 0.5, 0.75))
    assert frames.info.duration_seconds == probe(clip).duration_seconds == pytest.approx(1.0)


def test_side_data_that_pyav_can_t_name(tmp_path: Path) -> None:
    clip = tmp_path / "exif.avi"
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for number in range(10):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")):
                content = bytes(packet)
                longer = av.Packet(content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:])
                longer.pts = longer.dts = number
                longer.time_base, longer.stream = stream.codec_context.time_base, stream
                longer.is_keyframe = True
                container.mux(longer)
    with av.open(str(clip)) as container, pytest.raises(ValueError, match="not a valid Type"):
        next(container.decode(video=0)).side_data.get("DISPLAYMATRIX")
    assert_like_a_full_decode(clip, 10, 10 / 24)


@pytest.mark.parametrize(("name", "total"), [("mp4ff_stereo_spatial.mp4", 10), ("mjpeg_with_exif.avi", 10)])
def test_inputs_with_side_data(name: str, total: int) -> None:
    clip = faulty(name)
    assert_same(read_frames(clip, Sampling(frames=8)), decode_all(clip), evenly(total, 8))


def write_matrix(source: Path, target: Path, matrix: int) -> Path:
    """Copy an H.264 video with another colour matrix in its header: a second encoding may have other pictures."""
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        copied = writing.add_stream_from_template(stream)
        header = BitStreamFilterContext(f"h264_metadata=matrix_coefficients={matrix}", stream, copied)
        for read in reading.demux(stream):
            for packet in header.filter(read if read.size else None):
                packet.stream = copied
                writing.mux(packet)
    return target


@pytest.mark.parametrize(("refused", "used"), [(10, 9), (8, 6), (14, 6)], ids=["BT.2020 constant", "YCgCo", "ICtCp"])
def test_colour_matrices_that_swscale_refuses(tmp_path: Path, refused: int, used: int) -> None:
    clip = make_clip(tmp_path / "clip.mp4")
    one, other = (write_matrix(clip, tmp_path / f"{matrix}.mp4", matrix) for matrix in (refused, used))
    frames, same = read_frames(one, Sampling(frames=8)), read_frames(other, Sampling(frames=8))
    assert [digest(image) for image in frames.images] == [digest(image) for image in same.images]
    assert f"colour matrix {refused} " in frames.notes[0] and same.notes == ()


@pytest.mark.parametrize("name", ["colr_matrix_3_reserved.mp4", "colr_matrix_10_bt2020c.mp4"])
def test_inputs_with_colour_matrices(name: str) -> None:
    frames = read_frames(faulty(name), Sampling(frames=8))
    assert_same(frames, decode_all(faulty(name)), evenly(50, 8))
    assert "colour matrix" in frames.notes[0]


@pytest.mark.parametrize(("name", "codec"), [("raw.avi", "rawvideo"), ("smc.mov", "smc")])
def test_a_palette_beside_the_first_packet(tmp_path: Path, name: str, codec: str) -> None:
    clip = make_indexed(tmp_path / name, codec)
    assert_like_a_full_decode(clip, 24, 1.0)
    first = read_frames(clip, Sampling(frames=1)).images[0]
    assert first.max() > 100 and first.std() > 10


def test_an_input_with_a_palette() -> None:
    assert_like_a_full_decode(faulty("pal8_raw.avi"), 21, 2.1)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_avi_with_b_frames_keeps_its_rate(tmp_path: Path, codec: str) -> None:
    options: dict[str, Any] = {"bf": "2", "g": "8"}
    clip = copy_packets(make_clip(tmp_path / "film.ts", range(48), codec=codec, **options), tmp_path / "film.avi")
    assert_like_a_full_decode(clip, 48, 2.0)


def test_an_input_at_the_doubled_rate() -> None:
    assert_like_a_full_decode(faulty("h264_copied_into.avi"), 100, 4.0)


def test_decoding_stamps_in_matroska(tmp_path: Path) -> None:
    film = make_clip(tmp_path / "film.avi", range(48), codec="mpeg4", bf="2", g="8")
    clip = copy_packets(film, tmp_path / "copied.mkv", stamp=False)
    assert_like_a_full_decode(clip, 48, 2.0)


def test_an_input_with_decoding_stamps() -> None:
    assert_like_a_full_decode(faulty("xvid_in.mkv"), 98, 3.92)


@pytest.mark.parametrize("name", ["h264.ts", "h264.mkv", "mpeg2.mkv"])
def test_a_recording_that_begins_in_mid_stream(tmp_path: Path, name: str) -> None:
    open_gop = x264("keyint=8:min-keyint=8:scenecut=0:bframes=3:open-gop=1")
    mpeg2: dict[str, Any] = {"codec": "mpeg2video", "bf": "2", "g": "8"}
    film = make_clip(tmp_path / "film.ts", range(60), **(mpeg2 if name == "mpeg2.mkv" else open_gop))
    clip = copy_packets(film, tmp_path / name, skip=5)
    total = len(decode_all(clip))
    assert 40 < total < 55
    assert_like_a_full_decode(clip, total, total / 24)


@pytest.mark.parametrize(
    ("name", "total", "seconds"), [("open_gop_h264_cut.ts", 100, 4.0), ("mpeg2_cut.mkv", 105, 4.2)]
)
def test_inputs_that_begin_in_mid_stream(name: str, total: int, seconds: float) -> None:
    assert_like_a_full_decode(faulty(name), total, seconds)


def positions(frames: Frames, clip: Path) -> list[int]:
    decoded = [fingerprint for _, fingerprint in decode_all(clip)]
    return [decoded.index(digest(image)) for image in frames.images]


@pytest.mark.parametrize("name", ["early_stamp_reference.mp4", "swapped_chunks_bad_ctts.mp4"])
def test_a_packet_that_is_stamped_before_its_keyframe(name: str) -> None:
    for sampling in (
        Sampling(frames=8), Sampling(frames=32), Sampling(frames=3, start_seconds=0.6, end_seconds=1.5),
        Sampling(frames=5, start_seconds=0.3),
    ):  # fmt: skip
        frames = read_frames(faulty(name), sampling)
        numbers = positions(frames, faulty(name))
        single = list(iter_frames(faulty(name), sampling))
        assert tuple(frame.time_seconds for frame in single) == frames.times_seconds
        assert [digest(frame.image) for frame in single] == [digest(image) for image in frames.images]
        assert numbers == sorted(set(numbers))


def test_the_last_edit_list_counts() -> None:
    assert_like_a_full_decode(faulty("two_edts.mp4"), 50, 2.0)


def test_colour_boxes() -> None:
    frames = read_frames(faulty("colr_prof_then_nclx_bt709.mp4"), Sampling(frames=8))
    assert_same(frames, decode_all(faulty("colr_prof_then_nclx_bt709.mp4")), evenly(50, 8))


def test_an_empty_sample(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "empty.mp4", **x264("keyint=8:bframes=0"))
    content = bytearray(clip.read_bytes())
    last = content.index(b"stsz") + 16 + 4 * 23
    content[last : last + 4] = bytes(4)
    clip.write_bytes(content)
    frames = read_frames(clip, Sampling(frames=23))
    assert_same(frames, decode_all(clip), list(range(23)))
    assert probe(clip).average_fps == pytest.approx(24)


def test_it_is_said_why_there_is_no_picture(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", range(48))
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[:3000])
    encrypted = tmp_path / "encrypted.mp4"
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76" * 16, "encryption_kid": "a7" * 16}
    key["fflags"] = "bitexact"  # the same bytes each time: random ones may happen to be a picture
    with av.open(str(whole)) as reading, av.open(str(encrypted), "w", options=key) as writing:
        copied = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.size:
                packet.stream = copied
                writing.mux(packet)
    for path, words in ((cut, "cut short"), (encrypted, "encrypted")):
        for read in (read_frames, probe, check_video):
            with pytest.raises(MediaError) as raised:
                read(path)
            assert words in str(raised.value) and str(raised.value).count(str(path)) == 1


def test_pictures_in_another_file() -> None:
    with pytest.raises(MediaError, match="no frame can be decoded: the pictures are in another file"):
        read_frames(faulty("external_dref.mp4"))


def test_a_film_that_is_cut_short_says_so(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mov", range(48), **x264("keyint=8:bframes=0"))
    front = tmp_path / "front.mov"
    with av.open(str(whole)) as reading, av.open(str(front), "w", options={"movflags": "faststart"}) as writing:
        copied = writing.add_stream_from_template(reading.streams.video[0])
        for packet in reading.demux(video=0):
            if packet.size:
                packet.stream = copied
                writing.mux(packet)
    content = front.read_bytes()
    front.write_bytes(content[: content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2])
    frames = read_frames(front, Sampling(frames=48))
    oracle = decode_all(front)
    assert 10 < len(oracle) < 40
    assert_same(frames, oracle, list(range(len(oracle))))
    assert "the file is cut short" in frames.notes


def test_errors_of_libraries_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llava_video_cli.video.orientation import Geometry

    clip = make_clip(tmp_path / "plain.mp4")

    def fail(*_: object) -> None:
        raise ValueError("Unexpected format")

    monkeypatch.setattr(Geometry, "pixels", fail)
    with pytest.raises(MediaError, match=r"plain\.mp4: can't be read: ValueError: Unexpected format"):
        read_frames(clip, Sampling(frames=4))


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_avi_with_b_frames_and_a_variable_rate(tmp_path: Path, codec: str) -> None:
    stamps = [*range(20), *range(20, 80, 3)]
    film = make_clip(tmp_path / "film.ts", stamps, codec=codec, bf="2", g="8")
    clip = copy_packets(film, tmp_path / "film.avi")
    oracle = decode_all(clip)
    assert len(oracle) == len(stamps)
    frames = read_frames(clip, Sampling(frames=len(stamps)))
    assert_same(frames, oracle, list(range(len(stamps))))
    assert frames.times_seconds == pytest.approx([stamp / 24 for stamp in stamps], abs=0.002)


@pytest.mark.parametrize("name", ["copied.mkv", "copied.mov"])
def test_decoding_stamps_of_h264(tmp_path: Path, name: str) -> None:
    film = make_clip(tmp_path / "film.ts", range(48), **x264("keyint=8:bframes=2"))
    assert_like_a_full_decode(copy_packets(film, tmp_path / name, stamp=False), 48, 2.0)


def test_a_wrong_rate_in_the_header_of_a_file_with_decoding_stamps(tmp_path: Path) -> None:
    film = make_clip(tmp_path / "film.ts", range(48), **x264("keyint=8:bframes=2"))
    clip = copy_packets(film, tmp_path / "copied.mkv", stamp=False)
    name = b"\x23\xe3\x83\x84"  # DefaultDuration in ns, 4 bytes; PyAV 17 writes 24.4 pictures a second here
    before, _, after = clip.read_bytes().partition(name)
    clip.write_bytes(before + name + (50_000_000).to_bytes(4, "big") + after[4:])
    assert_like_a_full_decode(clip, 48, 2.0)


@pytest.mark.parametrize("name", ["mpeg2.mov", "refresh.mkv"])
def test_first_pictures_that_no_flag_tells_of(tmp_path: Path, name: str) -> None:
    mpeg2: dict[str, Any] = {"codec": "mpeg2video", "bf": "2", "g": "8"}
    refresh = x264("keyint=12:intra-refresh=1:bframes=0")
    film = make_clip(tmp_path / "film.ts", range(60), **(mpeg2 if name == "mpeg2.mov" else refresh))
    clip = copy_packets(film, tmp_path / name, skip=9)
    total = len(decode_all(clip))
    assert 30 < total < 51
    assert_like_a_full_decode(clip, total, total / 24)


def test_keyframes_that_begin_in_the_middle(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "late.mp4", range(48), **x264("keyint=8:min-keyint=8:scenecut=0"))
    content = bytearray(clip.read_bytes())
    table = content.index(b"stss") + 4
    content[table + 4 : table + 12] = struct.pack(">II", 1, 25)
    clip.write_bytes(content)
    assert_like_a_full_decode(clip, 48, 2.0)


def test_a_data_reference_by_address_is_told(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "plain.mp4")
    content = clip.read_bytes()
    address = b"file:///tmp/other.mp4\0"
    at = content.index(b"url \0\0\0\1")
    grown = content[: at - 4] + struct.pack(">I4sI", 12 + len(address), b"url ", 0) + address + content[at + 8 :]
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = grown.index(box) - 4
        size = int.from_bytes(grown[at : at + 4], "big") + len(address)
        grown = grown[:at] + struct.pack(">I", size) + grown[at + 4 :]
    clip.write_bytes(grown)
    assert "the pictures are in another file" in read_frames(clip, Sampling(frames=4)).notes


@pytest.mark.parametrize("name", ["film.mkv", "film.avi"])
def test_a_cut_is_told_of_other_containers(tmp_path: Path, name: str) -> None:
    clip = make_clip(tmp_path / name, range(48), codec="mpeg4", g="8")
    assert read_frames(clip, Sampling(frames=4)).notes == ()
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    assert "the file is cut short" in read_frames(clip, Sampling(frames=4)).notes


def test_avi_of_unknown_size_is_whole(tmp_path: Path) -> None:
    """As FFmpeg writes it to a pipe."""
    clip = make_clip(tmp_path / "film.avi", codec="mjpeg")
    content = bytearray(clip.read_bytes())
    content[4:8] = content[content.index(b"movi") - 4 : content.index(b"movi")] = b"\xff" * 4
    clip.write_bytes(content)
    assert read_frames(clip, Sampling(frames=4)).notes == ()


def test_a_scrambled_transport_stream_is_told(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clear.ts", range(48))
    content = bytearray(clip.read_bytes())
    for at in range(0, len(content), 188):
        if content[at + 1] & 0x1F == 1 and content[at + 2] == 0:  # the video's packets
            content[at + 3] |= 0x80
            content[at + 12 : at + 188] = bytes(byte ^ 0x5A for byte in content[at + 12 : at + 188])
    clip.write_bytes(content)
    with pytest.raises(MediaError, match="the video is encrypted"):
        read_frames(clip)


def test_pictures_with_damage_are_kept_and_told(tmp_path: Path) -> None:
    options: dict[str, Any] = {"codec": "mpeg2video", "size": (640, 480), "g": "24", "qmax": "2", "b": "50M"}
    clip = make_clip(tmp_path / "film.ts", range(24), **options)
    content = bytearray(clip.read_bytes())
    for at in range(len(content) // 4, len(content), len(content) // 20):
        content[at : at + 4] = b"\xaa\x55\xaa\x55"
    clip.write_bytes(content)
    assert len(decode_all(clip, keep=())) == 24
    frames = read_frames(clip, Sampling(frames=24))
    assert frames.frame_count == 24
    assert any("damage" in note or "broken" in note for note in frames.notes)


def test_a_seek_that_lands_within_a_picture(tmp_path: Path) -> None:
    """An MPEG program stream: behind such a seek, the first packets have the stamps of later ones."""
    clip = make_clip(tmp_path / "film.mpg", range(75), codec="mpeg1video", size=(160, 120), g="12")
    oracle = [fingerprint for _, fingerprint in decode_all(clip)]
    for number in range(75):
        start = number / 24
        frames = read_frames(clip, Sampling(frames=1, start_seconds=start + 0.01, end_seconds=start + 0.02))
        assert digest(frames.images[0]) == oracle[number]


def test_a_gif_that_is_cut_short_is_told(tmp_path: Path) -> None:
    """FFmpeg decodes what there is of the last frame, over the one before, and reports nothing."""
    whole = make_clip(tmp_path / "film.gif", range(12), codec="gif").read_bytes()
    for content, is_cut in ((whole, False), (whole + bytes(100), False), (whole[:-300], True), (whole[:-1], True)):
        path = tmp_path / "given.gif"
        path.write_bytes(content)
        notes = read_frames(path, Sampling(frames=2)).notes
        assert ("the file is cut short" in notes) == is_cut, len(content)
