"""How ranges of packets are planned and shared, and how pictures become pixels."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from av import VideoFrame

from llava_video_cli.errors import MediaError
from llava_video_cli.video.decode import MismatchError, PacketRange
from llava_video_cli.video.packet_index import PacketIndex
from llava_video_cli.video.parallel import (
    Converter,
    DecodedFrame,
    decoded_ahead,
    divide_work,
    plan_ranges,
    share_cores,
)
from llava_video_cli.video.sampling import Timeline


@pytest.mark.parametrize("error", [MismatchError, MediaError])
@pytest.mark.parametrize(("side", "ahead"), [(64, 16), (1024, 4), (1500, 2), (2048, 1), (4096, 1)])
def test_pictures_that_were_decoded_come_before_the_error_behind_them(
    side: int, ahead: int, error: type[Exception]
) -> None:
    frame, begun = VideoFrame(side, side), list[int]()

    def decoding() -> Iterator[tuple[int, VideoFrame]]:
        for number in range(20):
            begun.append(number)
            yield number, frame
        raise error("it is too large")

    got = decoded_ahead(decoding())
    assert next(got)[0] == 0
    assert len(begun) == ahead, "4 million pixels, or 16 pictures"
    assert [next(got)[0] for _ in range(19)] == [*range(1, 20)]
    with pytest.raises(error):
        next(got)
    assert [number for number, _ in decoded_ahead(iter([(7, frame)]))] == [7]


def test_pictures_of_another_size_take_that_of_the_first() -> None:
    converter, small, large = Converter(), VideoFrame(96, 64, "rgb24"), VideoFrame(192, 128, "rgb24")
    later: list[DecodedFrame] = []
    waiting = threading.Thread(target=lambda: later.append(converter.convert(1, 1, large, leads=False)), daemon=True)
    waiting.start()
    waiting.join(0.02)
    assert not later, "it waits for the first"
    assert converter.convert(0, 0, small).image.shape == (64, 96, 3)
    waiting.join()
    assert later[0].image.shape == (64, 96, 3)
    converter.convert(2, 2, small)
    assert converter.resized, "one of them was"


@pytest.mark.parametrize("is_enough", [True, False])
def test_frames_have_one_array_if_there_is_room(is_enough: bool) -> None:
    converter, frame = Converter(), VideoFrame(96, 64, "rgb24")
    converter.collect([5, 5, 7], 3 * 96 * 64 * 3 - (not is_enough))
    images = [converter.convert(stamp, stamp, frame).image for stamp in (5, 6, 7)]
    assert [np.shares_memory(image, converter.collected) for image in images if converter.collected is not None] == (
        [True, False, True] if is_enough else []
    )
    if converter.collected is not None:
        assert np.shares_memory(images[0], converter.collected[0]), "the first of the same"


def test_work_is_shared_where_that_is_faster() -> None:
    even = [PacketRange(k * 100, k * 100 + 91, (k,)) for k in range(8)]
    assert share_cores(even, 1) == (1, 1)
    assert share_cores(even, 2) == (2, 1)
    assert share_cores(even, 4) == (4, 1)
    assert share_cores(even, 16) == (8, 2)
    assert share_cores(even, 16, most=3) == (2, 8)
    assert share_cores(even[:1], 8) == (1, 8)
    assert share_cores([PacketRange(0, 251, (0,)), PacketRange(251, 261, (9,))], 2) == (1, 2)


def test_what_takes_little_is_decoded_by_the_caller() -> None:
    one, many = [PacketRange(0, 24, (0, 9))], [PacketRange(k, k + 1, (k,)) for k in range(0, 48, 2)]
    assert divide_work(one, 50e-6, cores=2) == (0, 1), "threads would wait for each other as long as they decode"
    assert divide_work(one, 200e-6, cores=2) == (0, 2)
    assert divide_work(one, 200e-6, cores=1) == (0, 1)
    assert divide_work(many, 200e-6, cores=2) == (0, 1), "each begins with an empty decoder"
    assert divide_work(one, 300e-6, cores=2) == (1, 2)
    assert divide_work(many, 300e-6, cores=2) == (2, 1)
    assert divide_work(many, 300e-6, cores=2, most=1) == (1, 2)
    assert divide_work(many, 300e-6, cores=1) == (0, 1)
    assert divide_work([], 300e-6, cores=2) == (0, 1)


def test_close_keyframes_are_read_without_what_lies_between() -> None:
    def ranges(keys: range, *, is_whole: bool = True, least: float = math.inf) -> list[tuple[int, int]]:
        stamps = np.arange(24)
        timeline = Timeline(list(range(24)), 24, Fraction(1, 24))
        index = PacketIndex(stamps, stamps, np.array(keys), timeline, is_whole=is_whole)
        return [(each.start, each.stop) for each in plan_ranges(index, range(0, 24, 3), least)]

    assert ranges(range(24)) == [(k, k + 1) for k in range(0, 24, 3)]
    assert ranges(range(24), is_whole=False) == [(0, 22)]  # each seek may read much of the file
    assert ranges(range(0, 24, 12)) == [(0, 22)]
    assert ranges(range(0, 24, 6), least=3) == [(0, 4), (6, 10), (12, 16), (18, 22)]  # for decoders that share them
    assert ranges(range(0, 24, 6), least=5) == [(0, 10), (12, 22)]
