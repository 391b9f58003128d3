"""Resumable runs from Python: the records of the command line without a terminal, and frames read ahead of weights."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from terminal import scene
from test_answers import USAGE, Echo, Entry

from llava_video_cli import (
    Chunk,
    Generation,
    Loading,
    MediaError,
    Model,
    ModelError,
    Preset,
    Request,
    UsageError,
    open_model,
)
from llava_video_cli.cli.app import run as llvid
from llava_video_cli.demo.world import write_clip
from llava_video_cli.prompt.subtitles import Count
from llava_video_cli.runs.caption import caption_folder
from llava_video_cli.runs.formats import Sidecars
from llava_video_cli.runs.prefetch import Job
from llava_video_cli.runs.preflight import ModelSource
from llava_video_cli.runs.record import Failure, Record
from llava_video_cli.runs.requests import answer_file
from llava_video_cli.runs.resumable import AnsweredRun, RunOptions, RunPlan, Summary

DOCS = Path(__file__).parents[2] / "docs" / "python.md"


@dataclass(frozen=True)
class Opened(ModelSource):
    """The demo checkpoint, but what opens it is the test's own."""

    call: Callable[[], Model] = Echo

    def open(self) -> Model:
        return self.call()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three scenes, and a file that is no video."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for shape in ("circle", "square", "triangle"):
        write_clip(folder / f"{shape}.mp4", scene(shape=shape))
    (folder / "words.mp4").write_text("no video")
    return folder


def entries(count: int, before: Callable[[], object]) -> RunPlan:
    def jobs(settings: Mapping[str, Any], count_tokens: Count) -> Iterable[Job]:
        assert not settings and callable(count_tokens)
        return [Entry(f"v{number}", [f"v{number}"], before=before) for number in range(count)]

    return RunPlan(jobs, count)


def without_times(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["usage"] = {name: value for name, value in row["usage"].items() if name.endswith("tokens")}
    return sorted(rows, key=lambda row: str(row["key"]))


def test_a_folder_from_python_is_the_folder_of_the_command_line(clips: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    run = caption_folder(clips, ours, model="demo", sidecars=Sidecars(("txt",), tmp_path / "texts"))
    assert run.summary == Summary(left=4)
    outcomes = list(run)
    records = [outcome for outcome in outcomes if isinstance(outcome, Record)]
    (failure,) = (outcome for outcome in outcomes if isinstance(outcome, Failure))
    assert run.summary == Summary(done=3, failed=1) and isinstance(failure.cause, MediaError)
    assert {Path(record.path).stem for record in records} == {"circle", "square", "triangle"}
    assert all(Path(record.path).stem in record.text for record in records)
    assert len(list((tmp_path / "texts").glob("*.txt"))) == 3 and (tmp_path / "ours.errors.jsonl").exists()
    assert llvid(["caption", str(clips), "-m", "demo", "-o", str(theirs), "-q"]) == 3
    assert without_times(ours) == without_times(theirs)
    for output in (ours, theirs):
        again = caption_folder(clips, output, model="demo")
        assert [type(outcome) for outcome in again] == [Failure]
        assert again.summary == Summary(done_before=3, failed=1)


def test_an_open_model_answers_several_runs(clips: Path, tmp_path: Path) -> None:
    model = open_model("demo", Loading(device="cpu"))
    (record,) = caption_folder([clips / "circle.mp4"], model=model, preset="demo")
    assert isinstance(record, Record) and "circle" in record.text
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": n, "video": "clips/square.mp4", "question": "What shape is it?", "frames": 8} for n in "ab"]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = answer_file(requests, answers, model=model)
    assert {outcome.values["id"]: outcome.values["answer"] for outcome in run} == dict.fromkeys("ab", "It is a square.")
    assert list(answer_file(requests, answers, model=model)) == []
    (subtitle,) = caption_folder(clips / "circle.mp4", tmp_path / "circle.srt", model=model, every_seconds=1)
    assert isinstance(subtitle, Record) and (tmp_path / "circle.srt").read_text().count(" --> ") == 2
    with pytest.raises(UsageError, match="must end in"):
        caption_folder(clips, tmp_path / "out.srt", model=model, sidecars=Sidecars(("txt",)))


def test_a_sampled_run_draws_a_seed_that_is_no_part_of_the_key(clips: Path, tmp_path: Path) -> None:
    preset = Preset("mine", "", "demo", generation=Generation(temperature=0.5))
    out = tmp_path / "out.jsonl"
    seeds = {
        outcome.values["settings"]["generation"]["seed"]
        for outcome in caption_folder(clips / "circle.mp4", out, preset=preset)
    }
    assert len(seeds) == 1 and None not in seeds
    assert caption_folder(clips / "circle.mp4", out, preset=preset).summary == Summary(done_before=1)


def test_videos_are_read_while_the_weights_load() -> None:
    read = threading.Event()

    def load() -> Model:
        assert read.wait(120), "nothing is read before the model is there"
        return Echo()

    run = AnsweredRun(entries(5, read.set), Opened("demo", Loading(), call=load), Preset("", ""), options=RunOptions())
    assert len(list(run)) == 5 and run.summary == Summary(done=5)


def test_a_model_that_cannot_be_loaded_ends_the_run_and_nothing_is_lost(clips: Path, tmp_path: Path) -> None:
    def load() -> Model:
        raise ModelError("the weights are torn")

    out = tmp_path / "out.jsonl"
    list(caption_folder(clips / "circle.mp4", out, model="demo"))
    before = out.read_bytes()
    for overwrite in (False, True):
        run = caption_folder(clips, out, model=Opened("demo", Loading(), call=load), overwrite=overwrite)
        with pytest.raises(ModelError, match="the weights are torn"):
            list(run)
        assert out.read_bytes() == before and run.summary.done == 0
    assert list(caption_folder(clips / "circle.mp4", out, model="demo")) == [], "the output is free for another run"


def test_a_stop_while_the_model_loads_ends_the_run() -> None:
    loads, stop, end = threading.Event(), threading.Event(), threading.Event()

    def load() -> Model:
        loads.set()
        assert end.wait(120)
        return Echo()

    source = Opened("demo", Loading(), call=load)
    run = AnsweredRun(entries(5, bool), source, Preset("", ""), options=RunOptions(stop=stop))

    def interrupt() -> None:
        loads.wait(120)
        stop.set()

    threading.Thread(target=interrupt).start()
    assert list(run) == [] and run.summary == Summary(left=5)
    end.set()


def test_leaving_the_loop_releases_the_output(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with caption_folder(clips, out, model="demo") as run:
        next(outcome for outcome in run if isinstance(outcome, Record))
    rest = caption_folder(clips, out, model="demo")
    assert rest.summary.done_before >= 1
    list(rest)
    assert len(without_times(out)) == 3


def test_the_example_of_the_docs_runs(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = (code for code in re.findall(r"```python\n(.+?)```", DOCS.read_text(), re.DOTALL) if "folder" in code)
    assert clips.is_dir()
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    out = capsys.readouterr().out
    assert "clips/circle.mp4: " in out and "words.mp4" in out and out.endswith("3 captioned, 1 failed\n")


class Silent(Echo):
    """Has nothing to say."""

    def stream(self, request: Request) -> Iterator[Chunk]:
        del request
        yield Chunk(" \n", "stop", USAGE)


def test_an_empty_answer_is_a_failure_unless_it_is_allowed(clips: Path, tmp_path: Path) -> None:
    (clips / "words.mp4").unlink()
    output = tmp_path / "captions.jsonl"
    failed = list(caption_folder(clips, output, model=Silent()))
    assert len(failed) == 3 and all(isinstance(each, Failure) for each in failed)
    assert all("the answer is empty" in str(each.cause) for each in failed if isinstance(each, Failure))
    assert not output.read_text()
    allowed = list(caption_folder(clips, output, model=Silent(), allow_empty=True))
    assert len(allowed) == 3 and all(isinstance(each, Record) for each in allowed), "the failures are tried again"
    assert not list(caption_folder(clips, output, model=Silent())), "what is done stays done"


def test_a_file_that_is_not_there_fails_under_its_whole_name(clips: Path, tmp_path: Path) -> None:
    names = [clips / "circle.mp4", clips / "Film: One.mp4", clips / "Film: Two: End.mp4"]
    out = tmp_path / "out.jsonl"
    failed = [outcome for outcome in caption_folder(names, out, model=Echo()) if isinstance(outcome, Failure)]
    assert [failure.values["video_path"] for failure in failed] == list(map(str, names[1:]))
    errors = tmp_path / "out.errors.jsonl"
    assert len(errors.read_text().splitlines()) == 2
    for name in names[1:]:
        shutil.copy(names[0], name)
    assert len(list(caption_folder(names, out, model=Echo()))) == 2 and not errors.exists()


def test_a_killed_run_leaves_no_failures_of_what_it_made(clips: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    (clips / "later.mp4").write_text("no video")
    assert len(list(caption_folder(clips, out, model=Echo()))) == 5
    before = errors.read_bytes()
    (clips / "later.mp4").write_bytes((clips / "circle.mp4").read_bytes())
    list(caption_folder(clips, out, model=Echo()))
    errors.write_bytes(before)  # SIGKILL came before the end of the run
    list(caption_folder(clips, out, model=Echo(), preset="default", limit=1))  # of other records, nothing is known
    assert len(errors.read_bytes().splitlines()) == 2
    list(caption_folder(clips, out, model=Echo()))
    assert [Path(json.loads(row)["video_path"]).name for row in errors.read_bytes().splitlines()] == ["words.mp4"]


def test_a_run_that_is_stopped_leaves_what_it_was_to_overwrite(clips: Path, tmp_path: Path) -> None:
    out, once = tmp_path / "out.jsonl", RunOptions(batch_size=1)
    list(caption_folder(clips, out, model=Echo(), preset="default"))
    before = out.read_bytes()
    run = caption_folder(clips, out, model=Echo(), preset="default", overwrite=True, options=once)
    for outcome in run:
        if isinstance(outcome, Record):
            run.stop.set()
    assert run.summary.left and run.is_pending and out.read_bytes() == before
    assert len(before.splitlines()) == 3


def test_a_record_goes_when_the_file_in_its_videos_place_fails(clips: Path, tmp_path: Path) -> None:
    out, video = tmp_path / "out.jsonl", tmp_path / "a.mp4"
    video.write_bytes((clips / "circle.mp4").read_bytes())
    list(caption_folder(video, out, model=Echo(), preset="default"))
    assert len(out.read_bytes().splitlines()) == 1
    video.write_text("no video")
    run = caption_folder(video, out, model=Echo(), preset="default")
    assert [type(outcome) for outcome in run] == [Failure] and run.summary == Summary(failed=1, replaced=1)
    assert out.read_bytes() == b""


def test_a_sidecar_goes_with_the_record_that_it_was_made_of(clips: Path, tmp_path: Path) -> None:
    films, text = tmp_path / "films", Sidecars(("txt", "srt"))
    films.mkdir()
    video, said = films / "a.mp4", films / "a.txt"
    video.write_bytes((clips / "circle.mp4").read_bytes())
    list(caption_folder(films, model=Echo(), preset="default", sidecars=text))
    before = said.read_text()
    (films / "a.srt").write_text("somebody's")
    video.write_text("no video")  # as one that is still being copied
    list(caption_folder(films, model=Echo(), preset="default", sidecars=text))
    assert not said.exists() and (films / "a.srt").read_text() == "somebody's"
    video.write_bytes((clips / "square.mp4").read_bytes())
    run = caption_folder(films, model=Echo(), preset="default", sidecars=text)
    assert [type(outcome) for outcome in run] == [Record] and said.read_text() == before
    assert (films / "a.srt").read_text() == "somebody's"


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_somebody_writes_during_a_run_in_place_of_a_sidecar_is_kept(clips: Path, overwrite: bool) -> None:
    def write(_: str) -> None:
        if not (clips / "circle.txt").exists():
            (clips / "circle.txt").write_text("by hand")

    notes: list[str] = []
    list(
        caption_folder(
            clips, model=Echo(write), preset="default", sidecars=Sidecars(("txt", "srt")), overwrite=overwrite,
            options=RunOptions(batch_size=1, notify=notes.append),
        )
    )  # fmt: skip
    assert (clips / "circle.srt").exists() and (clips / "square.txt").exists()
    is_kept = any("circle.txt is kept: somebody wrote it" in note for note in notes)
    assert ((clips / "circle.txt").read_text() == "by hand") is is_kept is not overwrite
