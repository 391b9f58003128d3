"""A model that takes the time of a GPU and gives its cores away, for tests and figures of runs on a cluster.

It comes in by the front door: `cluster.pipeline.run(..., open_model=partial(Sleeper, ...), open_resize=open_small)`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from answering import Answering
from numpy.typing import NDArray

from llava_video_cli import Budget, Chunk, Frames, Request, Usage
from llava_video_cli.speech import SpeechOptions
from llava_video_cli.speech.transcripts import Transcripts, share
from llava_video_cli.video.fit import FrameInput, FrameResize

ANSWERS_NO_WIDER, READS_NO_WIDER = 128, 144  # pixels: a worker dies over a video of just that width
USAGE = Usage(1, 0, 1, 0.0, 0.0, 0)


@dataclass
class Sleeper(Answering):
    """Says which part of the video it saw, and which pictures; dies over one of a certain width, and writes that down.

    It dies as in a crash.
    """

    seconds: float = 0.0
    deaths: Path | None = None
    name: str = "sleeper"
    settings: dict[str, Any] = field(default_factory=lambda: {"model": "sleeper"})

    def stream(self, request: Request) -> Iterator[Chunk]:
        (medium,) = request.media
        assert isinstance(medium, Frames)
        if self.deaths is not None and medium.info.width == ANSWERS_NO_WIDER:
            _die(self.deaths, f"answering {self.under_way}")
        time.sleep(self.seconds)
        yield Chunk(f"from {medium.part_seconds[0]} s: {crc32(medium.images.tobytes()):08x}", "stop", USAGE)

    def budget(self, request: Request) -> Budget:
        return Budget(1, request.generation.max_new_tokens, 4096)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def shrink(self) -> FrameResize:
        return FrameResize(FrameInput(48, 48), _small)


class Reciter(Sleeper):
    """Answers with its prompt, whose characters are the tokens; its context has room for so many beside the answer."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def stream(self, request: Request) -> Iterator[Chunk]:
        yield Chunk(request.turns[0].text, "stop", USAGE)

    def budget(self, request: Request) -> Budget:
        answer = request.generation.max_new_tokens
        return Budget(len(request.turns[0].text), answer, answer + self.room)


def open_hearing(cache: Path) -> FrameResize:
    """As `open_small`; where it is opened, the speech model `loudest` hears beeps."""
    from whisper import LoudestSeconds  # here, as each worker imports this module

    share("loudest", Transcripts(SpeechOptions(), LoudestSeconds(), cache=cache))
    return open_small()


def open_small(deaths: Path | None = None) -> FrameResize:
    """The Sleeper's `shrink`, without the Sleeper."""

    def small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if deaths is not None and image.shape[1] == READS_NO_WIDER:
            _die(deaths, "reading")
        return _small(image)

    return FrameResize(FrameInput(48, 48), small)


def _die(deaths: Path, words: str) -> None:
    with deaths.open("a") as file:
        file.write(f"{words}\n")
    os._exit(1)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image[::16, ::16])
