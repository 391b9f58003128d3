"""Other readers of video frames, each in its own way: a path and a number to uint8 (frames, height, width, 3).

Needs `pip install torchcodec decord opencv-python-headless`, and Debian's ffmpeg for torchcodec; what is missing is
left out. Frame i of n is number i * total // n, with the total that the reader itself believes in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Reader = Callable[[str, int], Pixels]
CORES = os.cpu_count() or 1


def uniform(total: int, count: int) -> list[int]:
    """The numbers of the frames to take."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def llvid(path: str, count: int) -> Pixels:
    """This project's reader."""
    from llava_video_cli import Sampling, read_frames

    return read_frames(path, Sampling(frames=count)).images


def snippet(path: str, count: int) -> Pixels:
    """What transformers documents for LLaVA-NeXT-Video: decode all, keep those whose number is wanted."""
    import av

    with av.open(path) as container:
        total = container.streams.video[0].frames
        indices = np.arange(0, total, total / count).astype(int)
        frames = []
        container.seek(0)
        for i, frame in enumerate(container.decode(video=0)):
            if i > indices[-1]:
                break
            if i >= indices[0] and i in indices:
                frames.append(frame)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


@cache
def _plan(path: str, count: int) -> tuple[tuple[int, ...], frozenset[int]]:
    """The stamps of the frames to take, and of all keyframes."""
    from llava_video_cli import Sampling
    from llava_video_cli.video import inspect
    from llava_video_cli.video.sampling import select_stamps

    timeline = inspect(path).timeline
    stamps = dict.fromkeys(select_stamps(timeline, Sampling(frames=count)).stamps)
    return tuple(stamps), frozenset(map(int, timeline.keyframes))


def pyav_alone(threads: int) -> Reader:
    """The least that PyAV needs: which frames to take, and where keyframes are, is known; nothing is checked."""

    def read(path: str, count: int) -> Pixels:
        import av
        from av.video.reformatter import VideoReformatter

        stamps, keys = _plan(path, count)
        reformatter, images, at = VideoReformatter(), None, 0
        with av.open(path, options={"skip_frame": "all"}) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            context.skip_frame = "DEFAULT"
            context.thread_type, context.thread_count = "FRAME" if threads > 1 else "NONE", threads
            while at < len(stamps):
                if at and any(stamps[at - 1] < key <= stamps[at] for key in keys):
                    container.seek(stamps[at], stream=stream)
                for frame in container.decode(stream):
                    if frame.pts != stamps[at]:
                        continue
                    rgb = reformatter.reformat(frame, format="rgb24", threads=1)
                    plane = rgb.planes[0]
                    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(rgb.height, plane.line_size)
                    pixels = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
                    if images is None:
                        images = np.empty((len(stamps), *pixels.shape), np.uint8)
                    images[at] = pixels
                    at += 1
                    if at == len(stamps) or any(stamps[at - 1] < key <= stamps[at] for key in keys):
                        break
        assert images is not None
        return images

    return read


def torchcodec(mode: str, threads: int) -> Reader:
    """Torchcodec's decoder, whose exact mode reads all packets first."""

    def read(path: str, count: int) -> Pixels:
        library: Any = import_module("torchcodec.decoders")
        decoder = library.VideoDecoder(path, seek_mode=mode, num_ffmpeg_threads=threads, dimension_order="NHWC")
        pixels: Pixels = decoder.get_frames_at(uniform(len(decoder), count)).data.numpy()
        return pixels

    return read


def decord(path: str, count: int) -> Pixels:
    """Decord, with its own choice of threads."""
    library: Any = import_module("decord")
    reader = library.VideoReader(path, num_threads=0)
    pixels: Pixels = reader.get_batch(uniform(len(reader), count)).asnumpy()
    return pixels


def opencv(seek: bool) -> Reader:
    """OpenCV: grab one frame after the other, or seek by number."""

    def read(path: str, count: int) -> Pixels:
        cv2: Any = import_module("cv2")
        capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        frames, at = [], 0
        try:
            for number in uniform(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), count):
                if seek:
                    capture.set(cv2.CAP_PROP_POS_FRAMES, number)
                    at = number
                while at <= number:
                    if not capture.grab():
                        raise ValueError(f"no frame {at}")
                    at += 1
                frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
        finally:
            capture.release()
        pixels: Pixels = np.stack(frames)
        return pixels

    return read


def transformers(backend: str) -> Reader:
    """The loaders of transformers, which its processors use."""

    def read(path: str, count: int) -> Pixels:
        from transformers import video_utils

        pixels: Pixels = np.asarray(video_utils.load_video(path, num_frames=count, backend=backend)[0])
        return pixels.transpose(0, 2, 3, 1) if pixels.shape[1] == 3 else pixels

    return read


_ALL: dict[str, tuple[str, Reader]] = {
    "llvid": ("av", llvid),
    "torchcodec exact": ("torchcodec", torchcodec("exact", 1)),
    "torchcodec exact, threads": ("torchcodec", torchcodec("exact", CORES)),
    "torchcodec approximate": ("torchcodec", torchcodec("approximate", 1)),
    "torchcodec approximate, threads": ("torchcodec", torchcodec("approximate", CORES)),
    "decord": ("decord", decord),
    "opencv grab": ("cv2", opencv(seek=False)),
    "opencv seek": ("cv2", opencv(seek=True)),
    "transformers pyav": ("transformers", transformers("pyav")),
    "transformers decord": ("decord", transformers("decord")),
    "transformers opencv": ("cv2", transformers("opencv")),
    "transformers torchcodec": ("torchcodec", transformers("torchcodec")),
    "snippet": ("av", snippet),
    "PyAV alone": ("av", pyav_alone(1)),
    "PyAV alone, threads": ("av", pyav_alone(CORES)),
}
READERS = {name: reader for name, (package, reader) in _ALL.items() if find_spec(package)}
