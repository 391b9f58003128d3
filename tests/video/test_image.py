from __future__ import annotations

import io
import os
import shutil
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from clips import make_clip, picture, sample
from PIL import EpsImagePlugin, Image
from PIL.TiffImagePlugin import TiffImageFile

from llava_video_cli import Sampling
from llava_video_cli.errors import MediaError, UsageError
from llava_video_cli.video import image, read_frames
from llava_video_cli.video.image import is_picture, read_image
from llava_video_cli.video.limits import Limits

RED, BLUE = (200, 30, 40), (20, 40, 210)


def corners(width: int = 32, height: int = 16) -> Image.Image:
    """A red picture whose upper left quarter is blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, 0, width // 2, height // 2))
    return image


def test_a_picture_as_it_is(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.path == str(tmp_path / "a.png")
    assert read.pixels.dtype == np.uint8
    assert np.array_equal(read.pixels, np.array(corners()))
    assert read.pixels.flags.writeable


@pytest.mark.parametrize(
    ("orientation", "blue_row", "blue_column"),
    [(1, 0, 0), (2, 0, -1), (3, -1, -1), (4, -1, 0), (5, 0, 0), (6, 0, -1), (7, -1, -1), (8, -1, 0)],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int, blue_row: int, blue_column: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    corners().save(tmp_path / f"a.{suffix}", exif=exif, quality=95)
    pixels = read_image(tmp_path / f"a.{suffix}").pixels
    assert pixels.shape == ((16, 32, 3) if orientation < 5 else (32, 16, 3))
    for row in (0, -1):
        for column in (0, -1):
            is_blue = int(pixels[row, column, 2]) > int(pixels[row, column, 0])
            assert is_blue == ((row, column) == (blue_row, blue_column))


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    image = corners().convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png").pixels
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == [127, 127, 127]
    assert pixels[-1, -1].tolist() == list(RED)


def test_palettes(tmp_path: Path) -> None:
    paletted = corners().convert("P", palette=Image.Palette.ADAPTIVE)
    paletted.save(tmp_path / "a.png")
    paletted.save(tmp_path / "a.gif")
    paletted.save(tmp_path / "clear.png", transparency=paletted.getpixel((0, 0)))
    for name in ("a.png", "a.gif"):
        assert np.array_equal(read_image(tmp_path / name).pixels, np.array(corners()))
    pixels = read_image(tmp_path / "clear.png").pixels
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[-1, -1].tolist() == list(RED)


def test_grey_levels_of_1_8_and_16_bits_and_cmyk(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "16.png")
    assert np.abs(read_image(tmp_path / "16.png").pixels[..., 1] - ramp / 257).max() <= 0.5
    Image.fromarray((ramp // 4).astype(np.uint16)).save(tmp_path / "dark.png")
    assert read_image(tmp_path / "dark.png").pixels.max() == 64
    Image.fromarray((ramp / 65535).astype(np.float32)).save(tmp_path / "float.tiff")
    assert np.abs(read_image(tmp_path / "float.tiff").pixels[..., 1] - ramp / 257).max() <= 0.5
    Image.fromarray((ramp >> 8).astype(np.uint8)).save(tmp_path / "8.png")
    assert np.array_equal(read_image(tmp_path / "8.png").pixels[..., 2], ramp >> 8)
    Image.fromarray(ramp > 30000).save(tmp_path / "1.png")
    assert np.array_equal(read_image(tmp_path / "1.png").pixels[..., 0], np.where(ramp > 30000, 255, 0))
    corners().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "cmyk.jpg").pixels[-1, -1].astype(int) - RED).max() < 12


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    for suffix in ("png", "jpg"):
        Image.fromarray(picture(3, 200, 200)).save(tmp_path / f"cut.{suffix}")
        (tmp_path / f"cut.{suffix}").write_bytes((tmp_path / f"cut.{suffix}").read_bytes()[:3000])
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "absent.png": "no such file", ".": "a folder, not a picture", "empty.png": "empty", "text.png": "not a picture",
        "cut.png": "broken or cut off", "cut.jpg": "broken or cut off", "pipe": "not a regular file",
        "a\0b": "can't be opened",
    }  # fmt: skip
    for name, words in cases.items():
        with pytest.raises(MediaError, match=words):
            read_image(f"{tmp_path}/{name}")
    for name in ("absent.png", ".", "empty.png", "pipe", "a\0b"):
        assert not is_picture(f"{tmp_path}/{name}")
    for name in ("cut.png", "text.png"):
        assert is_picture(tmp_path / name)


def test_decompression_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corners().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # and an error from 400 on
    with pytest.raises(MediaError, match="too large"):
        read_image(tmp_path / "a.png")
    assert is_picture(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "a.png").pixels.shape == (16, 32, 3)
        assert is_picture(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.eps", "clip.mp4", "a.jpg"])
def test_no_picture_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # looked up anew
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(MediaError, match="not a picture") as caught:
        read_image(tmp_path / name)
    assert "PNG" in str(caught.value.hint)
    assert is_picture(tmp_path / name) == (name == "a.jpg")
    assert not (tmp_path / "started").exists()
    with Image.open(tmp_path / name) as image, pytest.raises(OSError):
        image.load()
    assert (tmp_path / "started").exists(), "this file would start it"


def test_pillow_has_the_formats_that_are_read(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "dib", "tiff", "ppm"):
        corners().save(tmp_path / f"a.{suffix}")
        assert read_image(tmp_path / f"a.{suffix}").pixels.shape == (16, 32, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 60_000_000), (65_536, 100), (60, 60_001)])
def test_a_thin_picture_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "thin.png").write_bytes(png(width, height))
    with pytest.raises(MediaError, match=f"pictures of {width}x{height} are too large") as caught:
        read_image(tmp_path / "thin.png")
    assert "LLVID_LIMITS" in str(caught.value.hint)
    assert is_picture(tmp_path / "thin.png")


def test_a_long_picture_is_read(tmp_path: Path) -> None:
    Image.new("L", (60, 60_000)).save(tmp_path / "long.png")
    assert read_image(tmp_path / "long.png").pixels.shape == (60_000, 60, 3)


def png(width: int, height: int) -> bytes:
    """A picture whose header is all that is right."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_scans_of_a_progressive_jpeg_are_counted(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 100).save(tmp_path / "a.jpg", progressive=True)
    content = (tmp_path / "a.jpg").read_bytes()
    last = content[content.rindex(b"\xff\xda") : -2]
    limits = Limits(still_pixels=64 * 64)
    assert read_image(tmp_path / "a.jpg", limits=limits).pixels.shape == (64, 64, 3)
    # neither a marker without content nor one in a comment hides a scan or counts as one
    comment = b"\xff\xfe\x00\x06\xff\xda\xff\xda"
    (tmp_path / "a.jpg").write_bytes(content[:2] + comment * 50 + content[2:])
    assert read_image(tmp_path / "a.jpg", limits=limits).pixels.shape == (64, 64, 3)
    (tmp_path / "a.jpg").write_bytes(content[:-2] + (b"\xff\x01" + last) * 40 + b"\xff\xd9")
    with pytest.raises(MediaError, match=r"4\d scans or frames of 64x64 are too many"):
        read_image(tmp_path / "a.jpg", limits=limits)
    assert read_image(tmp_path / "a.jpg", limits=Limits(still_pixels=2 * 64 * 64)).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_frames_of_an_animation_are_counted(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    frames = [Image.fromarray(picture(number)) for number in range(33)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    width, height = frames[0].size
    with pytest.raises(MediaError, match=r"33 scans or frames of .* are too many"):
        read_image(path, limits=Limits(still_pixels=width * height))
    assert not is_picture(path)
    if suffix == "png":  # the header tells two, as players may not believe
        content = path.read_bytes()
        at = content.index(b"acTL")
        chunk = b"acTL" + struct.pack(">II", 2, 0)
        path.write_bytes(content[:at] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[at + 16 :])
        with pytest.raises(MediaError, match=r"33 scans or frames"):
            read_image(path, limits=Limits(still_pixels=width * height))


def test_strips_of_a_tiff_that_share_their_bytes_count_as_often(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    strips = {278: 1}  # rows in a strip
    Image.fromarray(noise).save(tmp_path / "a.tiff", compression="tiff_adobe_deflate", tiffinfo=strips)
    limits = Limits(still_pixels=64 * 64)
    assert np.array_equal(read_image(tmp_path / "a.tiff", limits=limits).pixels[..., 0], noise)
    with Image.open(tmp_path / "a.tiff") as image:
        sizes = cast("TiffImageFile", image).tag_v2[279]
    content, size = (tmp_path / "a.tiff").read_bytes(), len((tmp_path / "a.tiff").read_bytes())
    for kind in ("H", "I"):
        content = content.replace(
            struct.pack(f"<{len(sizes)}{kind}", *sizes), struct.pack(f"<{kind}", size) * len(sizes)
        )
    (tmp_path / "a.tiff").write_bytes(content)
    with pytest.raises(MediaError, match="64 scans or frames of 64x64 are too many"):
        read_image(tmp_path / "a.tiff", limits=limits)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp"])
def test_a_decoder_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    read = read_image(tmp_path / f"a.{suffix}").pixels
    assert read.shape == noise.shape
    calls = iter([0.0] * 8)
    monkeypatch.setattr(time, "thread_time", lambda: next(calls, 21.0))  # time passes in the decoder
    with pytest.raises(MediaError, match="not decoded within 20 seconds of a core"):
        read_image(tmp_path / f"a.{suffix}")


def test_texts_of_a_png_that_inflate_are_refused(tmp_path: Path) -> None:
    text = b"key\0\0" + zlib.compress(bytes(2**26))
    for kind in (b"zTXt", b"iCCP"):
        chunk = struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
        content = png(8, 8)
        (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
        assert is_picture(tmp_path / "a.png")
        with pytest.raises(MediaError, match="Decompressed data too large"):
            read_image(tmp_path / "a.png")


LARGE = [(mode, suffix) for suffix in ("png", "jpg", "webp", "tiff") for mode in ("RGB", "I;16")]
LARGE = [case for case in LARGE if case not in (("I;16", "jpg"), ("I;16", "webp"))]  # they have no 16 bits


@pytest.mark.parametrize(("mode", "suffix"), LARGE)
@pytest.mark.parametrize("part", [32, pytest.param(1, marks=pytest.mark.slow)])
def test_a_large_picture_is_shrunk_as_it_is_read(
    tmp_path: Path, suffix: str, mode: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of 34 million pixels, or one whose sides are a 32nd of it, with limits to match."""
    for name in ("_MAX_KEPT_PIXELS", "_STRIP_PIXELS"):
        monkeypatch.setattr(image, name, getattr(image, name) // part**2)
    width, height = 8001 // part, 4300 // part
    large = corners(width, height) if mode == "RGB" else Image.fromarray(np.full((height, width), 25_700, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated
    large.save(tmp_path / f"a.{suffix}", exif=exif)
    pixels = read_image(tmp_path / f"a.{suffix}").pixels
    assert pixels.shape == (-(-width // 2), -(-height // 2), 3)
    if mode == "RGB":
        edge = 10 // min(part, 5)
        assert np.abs(pixels[edge, -edge].astype(int) - BLUE).max() < 12
        assert np.abs(pixels[edge, edge].astype(int) - RED).max() < 12
        assert np.abs(pixels[-1, -1].astype(int) - RED).max() < 12
    else:
        assert (pixels == 100).all()


def test_a_picture_of_more_than_33_million_pixels_is_shrunk(tmp_path: Path) -> None:
    for width, factor in ((8192, 1), (8193, 2)):
        corners(width, 4096).save(tmp_path / "a.jpg")
        assert read_image(tmp_path / "a.jpg").pixels.shape == (4096 // factor, -(-width // factor), 3)


def test_formats_whose_decoders_take_more_memory_may_have_half_as_many_pixels(tmp_path: Path) -> None:
    limits = Limits(still_pixels=1000)
    for suffix, most in (("png", 1000), ("webp", 500)):
        corners(32, 16).save(tmp_path / f"a.{suffix}")  # 512 pixels
        if most == 1000:
            assert read_image(tmp_path / f"a.{suffix}", limits=limits).pixels.shape == (16, 32, 3)
        else:
            with pytest.raises(MediaError, match=f"at most {most} pixels"):
                read_image(tmp_path / f"a.{suffix}", limits=limits)


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_an_animation_has_the_time_of_a_picture(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(33)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=100)
    assert len(read_frames(tmp_path / f"a.{suffix}").images) == 32
    with pytest.raises(MediaError, match="not read within 0 seconds") as caught:
        read_frames(tmp_path / f"a.{suffix}", limits=Limits(still_seconds=0))
    assert "LLVID_LIMITS" in str(caught.value.hint)


def test_limits_are_raised_for_files_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (1, 1001)).save(tmp_path / "thin.png")
    with pytest.raises(MediaError, match="at most a side 1,000 times as long as the other"):
        read_image(tmp_path / "thin.png")
    monkeypatch.setenv("LLVID_LIMITS", "2")
    assert read_image(tmp_path / "thin.png").pixels.shape == (1001, 1, 3)
    assert Limits().pixels == 4 * 7680 * 4320
    assert Limits().seconds == 1800
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow's own limit
    corners().resize((64, 16)).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").pixels.shape == (16, 64, 3)
    monkeypatch.setenv("LLVID_LIMITS", "-1")
    with pytest.raises(UsageError, match="LLVID_LIMITS must be a whole number from 1 to 1,000, got '-1'"):
        read_image(tmp_path / "thin.png")


@pytest.mark.parametrize(("width", "height"), [(2, 100_000), (66_000, 2)])
def test_a_thin_video_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    frame = b"FRAME\n" + bytes(width * height + (width // 2) * (height // 2) * 2)
    (tmp_path / "thin.y4m").write_bytes(f"YUV4MPEG2 W{width} H{height} F4:1 C420jpeg\n".encode() + frame * 2)
    with pytest.raises(MediaError, match=f"pictures of {width}x{height} are too large: at most 65,535 pixels a side"):
        read_frames(tmp_path / "thin.y4m")


def test_content_and_not_the_name_tells_a_picture_from_a_video(tmp_path: Path) -> None:
    corners().save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "a.mp4")
    make_clip(tmp_path / "b.mp4")
    shutil.copy(tmp_path / "b.mp4", tmp_path / "b.jpg")
    assert is_picture(tmp_path / "a.mp4")
    assert not is_picture(tmp_path / "b.jpg")
    assert not is_picture(tmp_path / "b.mp4")


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_an_animation_is_a_video(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(4)]
    frames[0].save(tmp_path / f"still.{suffix}")
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=100)
    assert is_picture(tmp_path / f"still.{suffix}")
    assert not is_picture(tmp_path / f"moving.{suffix}")


def test_pictures_in_a_row_are_a_video(tmp_path: Path) -> None:
    path, content = tmp_path / "camera.mjpeg", io.BytesIO()
    for number in range(50):
        Image.effect_noise((320, 240), 5 * number).convert("RGB").save(content, "JPEG")
    path.write_bytes(content.getvalue())
    assert not is_picture(path)
    frames = read_frames(path, Sampling(frames=5))
    assert frames.times_seconds == (0.0, 0.4, 0.8, 1.2, 1.6) and len({image.std() for image in frames.images}) == 5
    assert not frames.notes
    for name, is_stream in (("handle", True), ("clip.mp4", True), ("preview.jpg", False), ("PREVIEW.JPE", False)):
        other = path.with_name(name)  # without a name of its own, by what follows the first picture
        other.write_bytes(content.getvalue())
        assert is_picture(other) != is_stream
        assert not is_stream or read_frames(other, Sampling(frames=5)).times_seconds == frames.times_seconds
    Image.new("RGB", (32, 24)).save(path.with_name("one"), "JPEG", progressive=True)
    assert is_picture(path.with_name("one"))
    path.with_name("two").write_bytes(2 * path.with_name("one").read_bytes())
    assert is_picture(path.with_name("two")), "the second one may be a preview"
    path.write_bytes(content.getvalue()[:-1000])
    assert "the file is cut short" in read_frames(path, Sampling(frames=5)).notes
    Image.effect_noise((32, 24), 5).save(tmp_path / "still.mjpeg", "PNG")
    assert is_picture(tmp_path / "still.mjpeg")


def test_an_animated_webp_is_whatever_can_be_shown(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(4)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    if is_picture(tmp_path / "moving.webp"):
        assert np.array_equal(read_image(tmp_path / "moving.webp").pixels, picture(0))
    else:
        assert len(read_frames(tmp_path / "moving.webp").images) == 4


def test_the_sample_animation() -> None:
    assert not is_picture(sample("pigs_in_a_polka.gif"))
