"""What is known before a model is loaded: whether requests fit it, and that it is loaded once, and told of once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from waiting_model import WaitingModel

from llava_video_cli import ContextError, Frames, Model, Request, Sampling, UsageError, load_preset
from llava_video_cli.model import Loading
from llava_video_cli.runs.caption import Task
from llava_video_cli.runs.preflight import (
    ModelLoader,
    ModelSource,
    first_request,
    largest_requests,
    most_frames,
)
from llava_video_cli.video.sampling import MAX_FRAMES

DEMO = load_preset("demo")


@dataclass(frozen=True)
class Source(ModelSource):
    """The demo checkpoint by its config; what is opened is the test's own."""

    steps: list[str] = field(default_factory=list)

    def open(self) -> Model:
        self.steps.append("open")
        model = WaitingModel()
        model.notes = ("a note",)
        return model


def loader(**options: bool) -> tuple[ModelLoader, list[str]]:
    steps: list[str] = []
    made = ModelLoader(
        Source("demo", Loading(), steps=steps, **options),  # type: ignore[arg-type]
        download=lambda: steps.append("download"),
        notify=steps.append,
        loaded=lambda _: steps.append("loaded"),
    )
    return made, steps


def asked(frames: int) -> Request:
    return DEMO.request("What is it?", [most_frames("", Sampling(frames))])


def test_a_model_is_downloaded_and_loaded_once_and_told_of_once() -> None:
    made, steps = loader()
    made.begin([asked(4)])
    assert made.has_begun
    made.insist([asked(500)])
    assert made.result() is made.result() and made.check()
    assert steps == ["download", "open", "a note", "loaded"]


def test_nothing_is_loaded_for_what_does_not_fit() -> None:
    made, steps = loader()
    made.begin([asked(4), asked(500)])
    assert not made.has_begun and not made.check()
    with pytest.raises(ContextError):
        made.insist([asked(4), asked(500)])
    assert steps == [] and not made.has_begun
    made.insist([asked(4)])
    assert made.result() and steps[:2] == ["download", "open"]


def test_a_model_that_is_open_is_not_told_of_again() -> None:
    model, said = WaitingModel(), list[str]()
    model.notes = ("a note",)
    made = ModelLoader(
        ModelSource("x", Loading(), opened=model), notify=said.append, loaded=lambda _: said.append("loaded")
    )
    made.begin([asked(500)])
    assert made.result() is model and said == [] and made.frame_input == model.shrink.input


def test_the_context_is_stretched_for_the_longest_request() -> None:
    made, steps = loader(rope_auto=True)
    made.begin([asked(4), asked(500)])
    assert made.has_begun and made.result()
    factor = made.source.loading.rope_factor
    assert factor is not None and factor > 1 and not made.source.rope_auto
    assert f"--rope-factor {factor:g}: the context is " in next(line for line in steps if "rope" in line)


def task(sampling: Sampling, every: object = None) -> Task:
    return Task(replace(DEMO, sampling=sampling), every)  # type: ignore[arg-type]


def test_the_largest_request_of_a_run() -> None:
    def frames(of: Task) -> int:
        (request,) = largest_requests(of)
        (medium,) = request.media
        assert isinstance(medium, Frames)
        return len(medium.images)

    assert frames(task(Sampling(7))) == 7
    # the last window of 4 s may have a tenth more, and has a frame at both of its ends
    assert frames(task(Sampling(fps=2.0), 4.0)) == math.ceil(2 * 4.4) + 1
    assert frames(task(Sampling(fps=100.0), 3600.0)) == MAX_FRAMES
    for every in (None, "scene"):
        assert largest_requests(task(Sampling(fps=2.0), every)) == []
        with pytest.raises(UsageError, match="--rope-factor auto can't know"):
            largest_requests(task(Sampling(fps=2.0), every), rope_auto=True)


def test_the_first_request_is_of_the_first_video_that_can_be_read(clip: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"cut")
    (request,) = first_request([str(broken), str(tmp_path / "gone.mp4"), str(clip)], task(Sampling(3)))
    (medium,) = request.media
    assert isinstance(medium, Frames) and medium.path == str(clip) and len(medium.images) == 3
    assert list(first_request([str(broken)] * 20 + [str(clip)], task(Sampling(3)))) == [], "not all of a folder"
    assert list(first_request([str(clip)], task(Sampling(fps=1.0)))) == []
