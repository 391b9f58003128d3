from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from clips import Pixels, picture
from PIL import ImageDraw

from llava_video_cli.errors import UsageError
from llava_video_cli.video import Frames, VideoInfo
from llava_video_cli.video.contact_sheet import contact_sheet, thumbnail, time_labels
from llava_video_cli.video.fit import Fit, FrameInput
from llava_video_cli.video.sampling import Sampling


def made_frames(count: int, width: int = 64, height: int = 36, step: float = 0.5) -> Frames:
    images = np.stack([np.full((height, width, 3), (100 + number, 180, 60), np.uint8) for number in range(count)])
    info = VideoInfo("a.mp4", count * step, width, height, 1 / step, "h264", 0)
    return Frames(images, tuple(number * step for number in range(count)), info, Sampling(frames=count))


@pytest.mark.parametrize(
    "count", [1, 2, 5, 13, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8, 32, 64))]
)
@pytest.mark.parametrize("size", [(64, 36), (36, 64), (50, 50), (200, 20)])
def test_every_frame_is_there_once_with_a_readable_shape(count: int, size: tuple[int, int]) -> None:
    sheet = contact_sheet(made_frames(count, *size))
    assert sheet.width == 1280
    assert sheet.mode == "RGB"
    assert 150 < sheet.height < 4000
    red, green, _ = np.moveaxis(np.asarray(sheet), -1, 0)
    seen = np.bincount(red[green == 180], minlength=256)
    assert seen[100 : 100 + count].all()


def test_frames_thinner_than_a_cell_stand_in_its_middle() -> None:
    sheet = np.asarray(contact_sheet(made_frames(2, width=4, height=4000), columns=2)).astype(int)
    assert sheet.shape[0] < 6000
    seen = np.argwhere((sheet[..., 0] == 100) & (sheet[..., 1] == 180))
    assert abs(seen[:, 1].mean() - 322) < 3


def test_frames_far_wider_than_high_are_still_seen() -> None:
    sheet = np.asarray(contact_sheet(made_frames(1, width=4000, height=1)))
    assert (sheet == (100, 180, 60)).all(axis=2).any()


def test_no_cell_is_empty_where_another_shape_fills_them() -> None:
    assert contact_sheet(made_frames(4, 50, 50)).height > 1200, "two rows of two"


def test_frames_stand_in_reading_order() -> None:
    sheet = np.asarray(contact_sheet(made_frames(6), columns=3)).astype(int)
    middles = [np.argwhere((sheet[..., 0] == 100 + n) & (sheet[..., 1] == 180)).mean(axis=0) for n in range(6)]
    rows, columns = zip(*middles, strict=True)
    assert rows[0] == rows[1] == rows[2] < rows[3] == rows[4] == rows[5]
    assert columns[0] < columns[1] < columns[2]
    assert columns[0] == columns[3]
    assert abs(columns[1] - 640) < 3


def test_a_time_is_printed_below_each_frame() -> None:
    frames = made_frames(4)
    sheet = np.asarray(contact_sheet(frames, columns=2)).astype(int)
    is_picture = (sheet[..., 1] == 180) & (sheet[..., 2] == 60)
    bottom = np.argwhere(is_picture[: sheet.shape[0] // 2].any(axis=1)).max()
    below = sheet[bottom + 2 : bottom + 30]
    for half in (below[:, :640], below[:, 640:]):
        assert (half.min(axis=2) > 200).sum() > 20
    moved = Frames(frames.images, (0.0, 1.0, 2.0, 3.0), frames.info, frames.sampling)
    assert not np.array_equal(sheet, np.asarray(contact_sheet(moved, columns=2)))


@pytest.mark.parametrize(
    ("times", "labels"),
    [
        ((0.0, 1.25, 61.0), ["0:00.0", "0:01.2", "1:01.0"]),
        ((0.0, 0.04, 0.08), ["0:00.00", "0:00.04", "0:00.08"]),
        ((0.0, 0.001), ["0:00.000", "0:00.001"]),
        ((59.96,), ["1:00.0"]),
        ((0.0, 3600.0, 7325.5), ["0:00:00.0", "1:00:00.0", "2:02:05.5"]),
        ((3600.0,), ["1:00:00.0"]),
        ((2.0, 2.0, 3.0), ["0:02.0", "0:02.0", "0:03.0"]),
    ],
)
def test_time_labels(times: tuple[float, ...], labels: list[str]) -> None:
    assert time_labels(times) == labels


def test_the_picture_itself_is_shown() -> None:
    frames = made_frames(1, 400, 300)
    frames.images[0] = picture(5, 400, 300)
    sheet = contact_sheet(frames, width_pixels=412)  # 6 pixels of gap on both sides
    assert np.array_equal(np.asarray(sheet)[6:306, 6:406], picture(5, 400, 300))


def test_columns_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="at least 1 column, got 0"):
        contact_sheet(made_frames(3), columns=0)
    with pytest.raises(UsageError, match="100 columns don't fit in 1280 pixels") as error:
        contact_sheet(made_frames(100), columns=100)
    assert error.value.hint == "each needs 54 pixels"
    assert contact_sheet(made_frames(3), columns=50).width == 1280


def texts(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on the sheet of the frames; the line at the bottom comes first."""
    written: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", lambda _, __, text, **___: written.append(text))
        contact_sheet(frames)
    return written


def test_a_frame_of_several_shots_has_its_shot_s_number(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = replace(made_frames(4), shots=((0.1, 1.0), (1.0, 2.0)))  # the first frame was there before the shots
    numbered = ["shot 1  0:00.0", "shot 1  0:00.5", "shot 2  0:01.0", "shot 2  0:01.5"]
    assert texts(frames, monkeypatch) == numbered
    assert texts(replace(frames, shots=((0.0, 2.0),)), monkeypatch)[0] == "0:00.0"


def test_long_times_stay_below_their_frame() -> None:
    frames = replace(
        made_frames(2), times_seconds=(36_000.001, 36_000.002), shots=((0.0, 36_000.002), (36_000.002, 36_001))
    )
    sheet = np.asarray(contact_sheet(frames, columns=2, width_pixels=218))
    assert (sheet[:, [0, 1, 108, 109, -2, -1]] < 100).all(), "the gaps are empty"


@pytest.mark.parametrize(
    ("size", "fit", "line"),
    [
        ((64, 36), "crop", "frames of 64 x 36 as 36 x 36: what is shaded is cut off"),
        ((36, 36), "crop", "frames of 36 x 36 as 36 x 36"),
        ((64, 36), "stretch", "frames of 64 x 36 as 36 x 36, stretched"),
        ((36, 36), "stretch", "frames of 36 x 36 as 36 x 36, stretched"),
    ],
)
def test_the_last_line_tells_the_size(
    size: tuple[int, int], fit: Fit, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = replace(made_frames(1, *size), input=FrameInput(36, 36, "crop", 36), sampling=Sampling(1, fit=fit))
    assert texts(frames, monkeypatch)[0] == f"the model gets {line}"


def test_the_last_line_fits_on_a_narrow_sheet() -> None:
    sheet = np.asarray(contact_sheet(replace(made_frames(1), input=FrameInput(36, 36, "crop", 36)), width_pixels=400))
    assert (sheet[:, [0, 1, 2, -3, -2, -1]] < 100).all()


def shown(frames: Frames) -> Pixels:
    """The first cell of a sheet of one column, without the gaps around it."""
    sheet = np.asarray(contact_sheet(frames, columns=1, width_pixels=652))
    return sheet[6 : 6 + 640 * frames.images.shape[1] // frames.images.shape[2], 6:646]


def test_the_middle_that_the_model_gets_is_not_shaded() -> None:
    frames = replace(made_frames(1), input=FrameInput(36, 36, "crop", 36))
    lit = (shown(frames)[100] == (100, 180, 60)).all(axis=1)
    assert np.flatnonzero(lit)[[0, -1]] == pytest.approx([140 + 1, 500 - 2]), "360 of 640, but for the outline"
    upright = (shown(replace(made_frames(1, 36, 64), input=frames.input))[:, 320] == (100, 180, 60)).all(axis=1)
    assert upright.sum() == 640 - 2 and not upright[0]
    uncut = replace(made_frames(1, 36, 36), input=frames.input)
    assert (shown(uncut) == (100, 180, 60)).all(), "no outline"


def test_frames_that_were_made_small_are_whole() -> None:
    frames = replace(made_frames(1), input=FrameInput(36, 36, "crop", 36))
    nearly = replace(frames, info=replace(frames.info, width=1000, height=563))
    assert (shown(nearly)[100, 5] == (50, 78, 36)).all(), "rounding has changed the shape a little"


def test_stretched_frames_are_shown_in_the_model_s_shape() -> None:
    frames = replace(made_frames(1), input=FrameInput(36, 36, "crop", 36), sampling=Sampling(1, fit="stretch"))
    assert contact_sheet(frames).height > 1280 > contact_sheet(made_frames(1)).height


def test_thumbnails_keep_the_shape() -> None:
    assert thumbnail(picture(0, 1280, 720)).shape == (360, 640, 3)
    assert thumbnail(picture(0, 720, 1280)[:, ::-1]).shape == (640, 360, 3)
    assert np.array_equal(thumbnail(picture(0)), picture(0))


def colours(sheet: Pixels) -> set[tuple[int, int, int]]:
    numbers = np.unique(sheet.reshape(-1, 3).astype(np.int32) @ (65536, 256, 1))
    return {(n >> 16, n >> 8 & 255, n & 255) for n in numbers.tolist()}


def test_what_the_model_does_not_get_is_shaded_unless_it_was_cut_off_before() -> None:
    frames = replace(made_frames(2), input=FrameInput(36, 36, "crop", 36))
    plain, shaded = (np.asarray(contact_sheet(each, width_pixels=640)) for each in (made_frames(2), frames))
    assert shaded.shape[0] > plain.shape[0], "a line tells the size"
    assert {(100, 180, 60), (101, 180, 60), (50, 78, 36)} < colours(shaded)
    padded = np.asarray(contact_sheet(replace(frames, sampling=Sampling(2, fit="pad")), width_pixels=640))
    assert {(123, 117, 104), (100, 180, 60)} < colours(padded)
    small = replace(frames, images=frames.images[:, :, 14:50])
    unshaded = colours(np.asarray(contact_sheet(small, width_pixels=640)))
    assert (100, 180, 60) in unshaded and (50, 78, 36) not in unshaded
    assert contact_sheet(frames, columns=1, width_pixels=60).width == 60
