from __future__ import annotations

import json
import os
import signal
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from answering import Answering
from terminal import Typed

from llava_video_cli import Answer, Budget, Chunk, Frames, Request, Usage
from llava_video_cli.cli.app import run
from llava_video_cli.diagnostics.bench import (
    Bench,
    BenchModel,
    BenchPlan,
    Measurement,
    TimedTask,
    measure_alternating,
)
from llava_video_cli.errors import ContextError, LlvidError, ModelError, OutOfMemoryError
from llava_video_cli.video.fit import FrameInput, FrameResize

USAGE = Usage(100, 0, 11, 0.5, 2.5, 3_000_000_000)


class FixedModel(Answering):
    """A model with fixed answers that keeps what it was asked."""

    name = "fixed"
    settings: dict[str, Any] = {"model": "fixed"}  # noqa: RUF012 - the protocol's form

    def __init__(self, out_of_memory_from: int = 99) -> None:
        self.streamed: list[Frames] = []
        self.batches: list[list[Frames]] = []
        self.itself: FixedModel | None = None
        self._out_of_memory_from = out_of_memory_from

    def stream(self, request: Request) -> Iterator[Chunk]:
        self.streamed += [medium for medium in request.media if isinstance(medium, Frames)]
        yield Chunk("words", "length", USAGE)

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        frames = [medium for request in requests for medium in request.media if isinstance(medium, Frames)]
        self.batches.append(frames)
        if len(requests) >= self._out_of_memory_from:
            raise OutOfMemoryError("out of memory on cpu")
        if len(frames[0].images) == 4:
            raise ContextError("the prompt takes too much")
        return [Answer("words", "length", USAGE) for _ in requests]

    def budget(self, request: Request) -> Budget:
        del request
        return Budget(1, 1, 100)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    @property
    def shrink(self) -> FrameResize:
        return FrameResize(FrameInput(48, 48), lambda image: image[::8, ::8])


def benched(clip: Path, model: FixedModel, **plan: Any) -> dict[tuple[str, int | None, int | None], Any]:
    bench = Bench(str(clip), replace(BenchPlan(frames=(2,), batches=(1, 3), runs=2), **plan))
    bench.model(BenchModel("as it is", lambda: model))
    assert bench.settings == [{"model": "fixed"}]
    return {(cell.what, cell.frames, cell.batch): cell for cell in bench.cells}


def test_values_are_those_of_the_usage_and_the_warm_up_run_is_not_counted(clip: Path) -> None:
    model = FixedModel()
    cells = benched(clip, model)
    assert cells["first token", 2, None].runs == [0.5, 0.5]
    assert cells["tokens", 2, None].runs == [5.0, 5.0]  # 10 after the first one, in 2 seconds
    assert cells["peak memory", None, None].median == 3.0
    assert all(seconds > 0.5 for seconds in cells["first token, from file", 2, None].runs)
    assert [len(batch) for batch in model.batches] == [1, 3] * 3
    assert len(cells["videos", 2, 3].runs) == 2 and cells["videos", 2, 3].precision == "as it is"


def test_a_model_never_sees_the_same_frames_twice(clip: Path) -> None:
    model = FixedModel()
    benched(clip, model, runs=4)
    media = model.streamed + [frames for batch in model.batches for frames in batch]
    assert len(media) == 5 * (2 + 1 + 3)
    assert len({frames.images.tobytes() for frames in media}) == len(media)


def test_a_cell_that_can_not_be_measured_has_the_reason_and_the_others_go_on(clip: Path) -> None:
    cells = benched(clip, FixedModel(out_of_memory_from=3), frames=(2, 4, 64), batches=(1, 3, 8))
    assert cells["videos", 2, 3].note == "out of memory" and not cells["videos", 2, 3].runs
    assert cells["videos", 4, 1].note == "doesn't fit the context"
    assert cells["videos", 64, 1].note == cells["first token", 64, None].note == "the video has only 20 frames"
    assert len(cells["videos", 2, 1].runs) == 2 and cells["videos", 2, 1].note is None


def test_a_model_that_can_not_be_loaded_is_a_note_too(clip: Path) -> None:
    def refuse() -> FixedModel:
        raise ModelError("the weights don't fit")

    bench = Bench(str(clip), BenchPlan())
    bench.model(BenchModel("4bit", refuse))
    (cell,) = bench.cells
    assert (cell.what, cell.note, cell.median) == ("load", "the weights don't fit", None)


def test_a_model_is_freed_before_the_next_one_is_loaded(clip: Path) -> None:
    models: list[weakref.ref[FixedModel]] = []

    def fresh() -> FixedModel:
        assert all(model() is None for model in models)
        model = FixedModel()
        model.itself = model
        models.append(weakref.ref(model))
        return model

    bench = Bench(str(clip), BenchPlan(frames=(2,), batches=(1,), runs=1))
    for _ in range(2):
        bench.model(BenchModel("4bit", fresh))
    assert len(models) == 2 and models[1]() is None


def task(calls: list[int], number: int, cost: float, error: LlvidError | None = None) -> TimedTask:
    def run() -> list[float | None]:
        calls.append(number)
        if error is not None:
            raise error
        return [float(len(calls)), None]

    return TimedTask((Measurement(f"task {number}", "s"), Measurement("never", "s")), run, cost)


def test_tasks_alternate_the_cheap_ones_first() -> None:
    calls: list[int] = []
    tasks = [task(calls, 2, 2), task(calls, 1, 1), task(calls, 3, 3, ModelError("broken"))]
    messages: list[str] = []
    measure_alternating(tasks, 2, 60, messages.append)
    assert calls == [1, 2, 3, 1, 2, 1, 2]
    assert tasks[0].measurements[0].runs == [5.0, 7.0] and tasks[0].measurements[1].runs == []
    assert tasks[2].measurements[0].note == "broken" and tasks[2].measurements[0].runs == []
    assert messages[0] == "task 1, warming up" and messages[-1] == "task 2, run 2 of 2"


def test_a_task_that_takes_longer_than_the_remaining_time_is_left_out() -> None:
    calls: list[int] = []
    tasks = [task(calls, 1, 1.0), task(calls, 2, 1e4)]
    measure_alternating(tasks, 2, 1000, lambda _: None, scale=1.0)
    assert 2 in calls  # the first one took less than was thought, and so would this one
    calls.clear()
    measure_alternating([task(calls, 1, 1.0), slow := task(calls, 2, 5000.0)], 2, 1000, lambda _: None, scale=1e6)
    assert calls == [] and slow.measurements[0].note == "takes too long: 83333333 min"


def test_the_first_run_counts_where_the_time_is_up() -> None:
    def run() -> list[float | None]:
        time.sleep(0.2)
        return [1.0]

    slow = TimedTask((Measurement("slow", "s"),), run, 1.0)
    measure_alternating([slow], 3, 0.3, lambda _: None)
    assert (
        slow.measurements[0].runs == [1.0]
        and slow.measurements[0].note == "one run without a warm-up, for lack of time"
    )


def test_the_last_line_of_stdout_is_one_document(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    code = run(["bench", str(clip), "--random-weights", "tiny", "--quick", "--runs", "2", "--quantize", "4bit"])
    out, err = capsys.readouterr()
    assert code == 0, err
    (line,) = out.splitlines()
    document = json.loads(line)
    cells = {(cell["what"], cell["frames"], cell["batch"]): cell for cell in document["cells"]}
    assert document["is_whole"] and document["model"] == "random:tiny" and document["video"]["name"] == str(clip)
    assert document["machine"]["cores"] >= 1 and document["machine"]["cpu"] and document["machine"]["versions"]["torch"]
    assert document["settings"][0]["quantize"] == "4bit" and document["plan"]["runs"] == 2
    for key in [
        ("read", 8, None), ("make weights", None, None), ("copy", None, None), ("first token", 8, None),
        ("first token, from file", 8, None), ("tokens", 8, None), ("of the bandwidth limit", 8, None),
        ("videos", 8, 1), ("videos", 8, 8), ("peak memory", None, None),
    ]:  # fmt: skip
        assert cells[key]["median"] > 0, key
    assert "videos/s" in err and "4bit" in err and document["machine"]["cpu"] in err
    assert "\u2026" not in err and all(f" {cell['median']:.3g}" in err for cell in cells.values() if cell["unit"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-m", "demo", "--random-weights", "7B"), "not both"),
        (("--random-weights", "8B"), "no random weights of size '8B'"),
        (("no.mp4", "-m", "demo"), "no.mp4"),
        (("-m", "demo", "--runs", "0"), "--runs"),
    ],
)
def test_a_mistake_is_an_error_before_anything_is_measured(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["bench", *arguments])
    out, err = capsys.readouterr()
    assert code in (1, 2) and says in err and not out and "Traceback" not in err


def test_after_ctrl_c_the_results_so_far_are_written(clip: Path) -> None:
    arguments = ("bench", str(clip), "-m", "demo", "--runs", "1000000", "--seconds", "1000")
    bench = Typed(*arguments, cwd=clip.parent)
    bench.until("read, 16 frames, run")
    os.kill(bench.process.pid, signal.SIGINT)
    assert bench.end() == 130
    assert "read" in bench.shown and "--json writes" in bench.shown and "{" not in bench.shown
    bench = Typed(*arguments, "--json", cwd=clip.parent)
    bench.until("read, 16 frames, run")
    os.kill(bench.process.pid, signal.SIGINT)
    assert bench.end() == 130
    assert "interrupted: these are the results so far" in bench.shown and "Traceback" not in bench.shown
    document = json.loads(bench.shown[bench.shown.index("{") : bench.shown.rindex("}") + 1])
    assert not document["is_whole"] and all(cell["what"] == "read" and cell["runs"] for cell in document["cells"])


def test_ctrl_c_with_quiet_has_no_note(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llava_video_cli.diagnostics.bench.Bench.reading", interrupted)
    assert run(["bench", str(clip), "-m", "demo", "-q"]) == 130
    out, err = capsys.readouterr()
    assert not json.loads(out)["is_whole"] and err == "interrupted\n"
