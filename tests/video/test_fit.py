"""What a frame becomes before a model's processor gets it, and how much of it the model then gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import make_clip, picture
from numpy.typing import NDArray
from PIL import Image, ImageOps

from llava_video_cli.errors import UsageError
from llava_video_cli.video import iter_frames, read_frames
from llava_video_cli.video.fit import Fit, FrameInput, FrameResize
from llava_video_cli.video.sampling import Sampling

CUTS = FrameInput(48, 48, "crop", 48)
SQUEEZES = FrameInput(48, 48, "stretch")
SERVER = FrameInput(48, 48, "server")
WIDE = FrameInput(64, 36, "crop", 36, (1, 2, 3))
MEAN = (123, 117, 104)  # 0.48145466, 0.4578275 and 0.40821073 of 255
SIZES = [(640, 360), (360, 640), (100, 100), (48, 48), (97, 41), (41, 97), (400, 3), (3, 400)]


@pytest.mark.parametrize("size", SIZES)
def test_padded_as_pillow_does_it(size: tuple[int, int]) -> None:
    image = picture(1, *size)
    side = max(size)
    place = (side - size[0]) // 2, (side - size[1]) // 2
    whole = Image.new("RGB", (side, side), MEAN)
    whole.paste(Image.fromarray(image), place)
    assert np.array_equal(CUTS.fitted(image, "pad"), np.asarray(whole))


@pytest.mark.parametrize("size", SIZES)
def test_stretched_as_pillow_does_it(size: tuple[int, int]) -> None:
    image = picture(1, *size)
    whole = Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(CUTS.fitted(image, "stretch"), np.asarray(whole))


@pytest.mark.parametrize("size", SIZES)
def test_cut_as_pillow_does_it_unless_the_processor_cuts_by_itself(size: tuple[int, int]) -> None:
    image = picture(1, *size)
    assert CUTS.fitted(image, "crop") is image
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    middle = image[top : top + side, left : left + side]
    for own in (SQUEEZES, SERVER):
        assert np.array_equal(own.fitted(image, "crop"), middle)
    assert SQUEEZES.fitted(image, "stretch") is image


def test_a_model_whose_shape_is_no_square() -> None:
    image = picture(1, 100, 100)
    padded = WIDE.fitted(image, "pad")
    assert padded.shape == (100, 178, 3) and tuple(padded[50, 0]) == (1, 2, 3)
    assert np.array_equal(padded[:, 39:139], image)
    assert replace(WIDE, way="stretch").fitted(image, "crop").shape == (56, 100, 3)
    assert WIDE.fitted(image, "stretch").shape == (36, 64, 3)


@pytest.mark.parametrize("fit", ["auto", "crop", "pad", "stretch"])
@pytest.mark.parametrize("frame_input", [CUTS, SQUEEZES, SERVER, WIDE])
def test_what_has_been_fitted_stays(frame_input: FrameInput, fit: Fit) -> None:
    once = frame_input.fitted(picture(1, 97, 41), fit)
    assert np.array_equal(frame_input.fitted(once, fit), once)


@pytest.mark.parametrize("size", [(16_000, 2), (2, 16_000), (6000, 3000)])
def test_padding_takes_no_gigabytes(size: tuple[int, int]) -> None:
    padded = CUTS.fitted(np.zeros((size[1], size[0], 3), np.uint8), "pad")
    height, width, _ = padded.shape
    assert height == width < 4096
    assert tuple(padded[0, 0]) == tuple(padded[-1, -1]) == MEAN
    assert not padded.min(axis=(0, 1)).any()


@pytest.mark.parametrize(
    ("frame_input", "size", "fit", "shares"),
    [
        (CUTS, (640, 360), "auto", (0.5625, 1)),
        (CUTS, (640, 360), "crop", (0.5625, 1)),
        (CUTS, (360, 640), "auto", (1, 0.5625)),
        (CUTS, (640, 360), "pad", (1, 1)),
        (CUTS, (640, 360), "stretch", (1, 1)),
        (CUTS, (100, 100), "auto", (1, 1)),
        (SQUEEZES, (640, 360), "auto", (1, 1)),
        (SQUEEZES, (640, 360), "crop", (0.5625, 1)),
        (SERVER, (640, 360), "crop", (0.5625, 1)),
        (SERVER, (640, 360), "pad", (1, 1)),
        (FrameInput(48, 48, "crop", 64), (640, 360), "auto", (0.421875, 0.75)),  # the cut is smaller than the edge
        (FrameInput(48, 48, "crop", 64), (640, 360), "pad", (0.75, 1)),
        (FrameInput(48, 48, "crop", 64), (640, 360), "stretch", (0.75, 0.75)),
        (FrameInput(48, 48, "crop", None), (96, 64), "auto", (0.5, 0.75)),  # not resized
        (FrameInput(48, 48, "crop", None), (32, 32), "auto", (1, 1)),
    ],
)
def test_how_much_of_a_frame_the_model_gets(
    frame_input: FrameInput, size: tuple[int, int], fit: Fit, shares: tuple[float, float]
) -> None:
    assert frame_input.visible(*size, fit) == pytest.approx(shares)


def test_a_server_decides_by_itself() -> None:
    assert SERVER.visible(640, 360, "auto") is None
    assert [SERVER.came_to("auto"), SERVER.came_to("pad"), CUTS.came_to("auto")] == ["server", "pad", "crop"]


def test_a_frame_is_resized_once() -> None:
    def resize(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(ImageOps.fit(Image.fromarray(image), (48, 48)))

    shrink = FrameResize(CUTS, resize)
    small = shrink(picture(1), "pad")
    assert small.shape == (48, 48, 3) and shrink(small, "pad") is small
    assert tuple(small[0, 0]) == MEAN


def test_reading_fits_as_the_sampling_says(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    shrink = FrameResize(CUTS, lambda image: image)
    whole = read_frames(path, Sampling(2))
    for sampling, visible in ((Sampling(2), 2 / 3), (Sampling(2, fit="pad"), 1.0), (Sampling(2, fit="stretch"), 1.0)):
        read = read_frames(path, sampling, resize=shrink)
        expected = [CUTS.fitted(image, sampling.fit) for image in whole.images]
        assert np.array_equal(read.images, expected)
        assert read.input == CUTS and read.visible == pytest.approx((visible, 1))
        streamed = [frame.image for frame in iter_frames(path, sampling, resize=shrink)]
        assert np.array_equal(streamed, expected)
    assert whole.input is None and whole.visible is None


def test_a_fit_that_does_not_exist_is_refused() -> None:
    unknown: dict[str, Any] = {"fit": "squeeze"}
    with pytest.raises(UsageError, match="fit must be one of auto, crop, pad, stretch, got 'squeeze'"):
        Sampling(**unknown)
    assert "fit" not in Sampling().values() and Sampling(fit="pad").values()["fit"] == "pad"
