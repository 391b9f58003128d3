"""The program with a model that needs neither torch nor transformers, for tests of what the model does not decide.

`LIGHT` is its command line. It takes half a second, where importing torch and transformers takes several.
"""

from __future__ import annotations

import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from answering import Answering

from llava_video_cli import Chunk, Picture, Request, Usage
from llava_video_cli.checkpoint.frame_input import frame_input
from llava_video_cli.prompt.budget import Budget
from llava_video_cli.runs import preflight
from llava_video_cli.video.fit import FrameResize

LIGHT = (sys.executable, str(Path(__file__)))
QUESTIONS = {
    "What shape is it?": "It is a circle.",
    "What color is it at the start?": "It starts red.",
    "Which way does it move?": "It moves right.",
    "What?": "w0 " * 100,  # a long answer, which takes a second
}
COUNT = "How many videos and pictures are there?"  # answered by what it got
CAPTION = "A red circle moves right."


class Light(Answering):
    """Knows the answers to a few questions, and has one for all others; a word takes a hundredth of a second."""

    name = "demo"
    notes = ()
    settings: dict[str, Any] = {"model": "demo", "family": "llava_next_video"}  # noqa: RUF012 - as a model has it

    def stream(self, request: Request) -> Iterator[Chunk]:
        text = request.turns[-1].text
        words = next((answer for question, answer in QUESTIONS.items() if question in text), CAPTION).split()
        if COUNT in text:
            pictures = sum(isinstance(medium, Picture) for medium in request.media)
            words = [f"{len(request.media) - pictures} of the one,", f"{pictures} of the other."]
        for word in words[:-1]:
            time.sleep(0.01)
            yield Chunk(f"{word} ")
        yield Chunk(words[-1], "stop", Usage(1, 0, len(words), 0.0, 0.0, 1))

    def budget(self, request: Request) -> Budget:
        return Budget(1, request.generation.max_new_tokens, 4096)

    @property
    def shrink(self) -> FrameResize:
        of_demo = frame_input(self.name)
        assert of_demo is not None
        return FrameResize(of_demo, lambda image: image)


if __name__ == "__main__":
    vars(preflight).update(open_model=lambda *_, **__: Light(), open_resize=lambda *_, **__: Light().shrink)
    runpy.run_module("llava_video_cli", run_name="__main__", alter_sys=True)
