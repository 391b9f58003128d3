from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip, picture, sample
from PIL import Image

from llava_video_cli.errors import MediaError
from llava_video_cli.video.image import is_picture, read_image

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
    for name in ("absent.png", ".", "empty.png", "text.png", "pipe", "a\0b"):
        assert not is_picture(f"{tmp_path}/{name}")
    assert is_picture(tmp_path / "cut.png")


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


def test_an_animated_webp_is_whatever_can_be_shown(tmp_path: Path) -> None:
    frames = [Image.fromarray(picture(number)) for number in range(4)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    if is_picture(tmp_path / "moving.webp"):
        assert np.array_equal(read_image(tmp_path / "moving.webp").pixels, picture(0))
    else:
        from llava_video_cli.video import read_frames

        assert len(read_frames(tmp_path / "moving.webp").images) == 4


def test_the_sample_animation() -> None:
    assert not is_picture(sample("pigs_in_a_polka.gif"))
