"""Runs on a Ray cluster on this machine: the same records, and nothing is lost with a worker."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from clips import make_clip
from PIL import Image
from sleeper import ANSWERS_NO_WIDER, READS_NO_WIDER, Reciter, Sleeper, open_hearing, open_small
from sounds import make_film
from terminal import scene

from llava_video_cli import Sampling, load_preset, open_model
from llava_video_cli.cluster import ClusterRun, caption_on_cluster, estimate, open_output
from llava_video_cli.cluster.pipeline import LiveProgress, run
from llava_video_cli.cluster.session import Cluster, ClusterSession
from llava_video_cli.demo.world import write_clip
from llava_video_cli.errors import LlvidError, UsageError
from llava_video_cli.evaluation.questions import demo_questions
from llava_video_cli.evaluation.run import Evaluation, evaluate
from llava_video_cli.inference import open_resize
from llava_video_cli.model import Model
from llava_video_cli.preset import Preset
from llava_video_cli.runs.answers import run as run_here
from llava_video_cli.runs.caption import CaptionJob, Task
from llava_video_cli.runs.record import Failure, Record, settings_values
from llava_video_cli.runs.requests import answer_file
from llava_video_cli.runs.resumable import AnsweredRun
from llava_video_cli.runs.table import parse_where
from llava_video_cli.video.files import Found
from llava_video_cli.video.files import find as find_files

TASK = Task(Preset("test", "", "sleeper", sampling=Sampling(frames=4)))
ANY_SHAPE = '{"type": "array", "items": {"enum": ["circle", "square", "triangle"]}, "minItems": 1, "maxItems": 2}'
DEMO = partial(open_model, "demo"), partial(open_resize, "demo")


@pytest.fixture(scope="module")
def session() -> Iterator[ClusterSession]:
    """A cluster on this machine with two actors and two readers."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    with Cluster("local", 2, 2, 2, memory_bytes=200 * 2**20).connected() as session:
        yield session


@pytest.fixture(scope="module")
def one(session: ClusterSession) -> ClusterSession:
    """Its smallest part: each process takes seconds to start."""
    return replace(session, min_workers=1, max_workers=1, readers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of the demo's world, and a file that is not a video."""
    path = tmp_path_factory.mktemp("scale")
    for number in range(20):
        shape = ("circle", "square", "triangle")[number % 3]
        write_clip(path / f"{number:02d}.mp4", scene(shape=shape, y=0.3 + number / 100))
    (path / "broken.mp4").write_bytes(b"nothing")
    return path


def on_ray(
    paths: Iterable[object],
    task: Task,
    session: ClusterSession,
    output_folder: Path,
    model: Any,
    resize: Any = open_small,
    **more: Any,
) -> Iterator[Record | Failure]:
    return run(
        [str(path) for path in paths], task, session, open_model=model, open_resize=resize,
        output_folder=str(output_folder), **({"done": set()} | more),
    )  # fmt: skip


def split(outcomes: Iterable[Record | Failure]) -> tuple[dict[str, Any], dict[str, str]]:
    """Records without their times, and failures' messages, by path; none twice."""
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for outcome in outcomes:
        path = outcome.values["video_path"]
        assert path not in done and path not in failed, "once each"
        if isinstance(outcome, Failure):
            failed[path] = outcome.values["error"]
        else:
            usage = {name: value for name, value in outcome.values["usage"].items() if name.endswith("tokens")}
            done[path] = dict(outcome.values) | {"usage": usage}
    return done, failed


def here(folder: Path, task: Task, model: Model, **find: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The same without Ray."""
    settings = settings_values(model, task.preset)
    entries = find_files([str(folder)], **find)
    jobs = [
        CaptionJob(each.path, task.key(_beside(each.path, folder), each.status), task, settings, model.budget)
        for each in entries
        if isinstance(each, Found)
    ]
    return split(run_here(jobs, model))


def _beside(path: str, folder: Path) -> str:
    place = os.path.relpath(Path(path).parent, folder)
    return f"{place}/{Path(path).name}"


@pytest.mark.slow
@pytest.mark.parametrize("schema", [None, ANY_SHAPE])
def test_records_are_the_same_as_without_ray(schema: str | None, one: ClusterSession, folder: Path) -> None:
    """By default, the test of a video that kills workers compares those of the Sleeper."""
    preset = load_preset("demo")
    task = Task(replace(preset, generation=replace(preset.generation, schema=schema)))
    outcomes = split(on_ray([folder], task, one, folder, *DEMO))
    assert len(outcomes[0]) == 20 and outcomes == here(folder, task, open_model("demo"))


@pytest.mark.slow
def test_choices_are_scored_and_where_sorts_the_records(one: ClusterSession, folder: Path, tmp_path: Path) -> None:
    preset = load_preset("demo")
    generation = replace(preset.generation, choices=("circle", "square", "triangle"), prefill="It is a ")
    task = Task(replace(preset, prompt="What shape is it?", generation=generation))
    paths = [folder / f"{n:02d}.mp4" for n in range(6)]
    where = parse_where("square>0.8", generation.choices)
    with open_output(str(tmp_path / "out.jsonl"), scored=True, where=where) as output:
        outcomes = list(
            caption_on_cluster(list(map(str, paths)), task, one, output, open_model=DEMO[0], open_resize=DEMO[1])
        )
    kept, rest = ((tmp_path / name).read_text().splitlines() for name in ("out.jsonl", "out.rest.jsonl"))
    shapes = {Path(each["video_path"]).stem: each["caption"] for each in map(json.loads, [*kept, *rest])}
    assert shapes == {f"{n:02d}": ("circle", "square", "triangle")[n % 3] for n in range(6)}
    assert len(kept) == 2 and len(outcomes) == 6
    records = here(folder, task, open_model("demo"))[0]
    for outcome in outcomes:
        assert isinstance(outcome, Record)
        assert dict(outcome.scores) == pytest.approx(records[outcome.path]["scores"], abs=1e-4)
    with pytest.raises(UsageError, match="--where needs a table"), open_output(f"{tmp_path}/", where=where):
        pass


@pytest.mark.slow
def test_windows_are_joined_and_finished_videos_are_skipped(session: ClusterSession, folder: Path) -> None:
    task = replace(TASK, every_seconds=0.5)
    done, failed = split(on_ray([folder], task, session, folder, Sleeper, batch_size=3))
    assert (done, failed) == here(folder, task, Sleeper())
    assert [len(values["segments"]) for values in done.values()] == [4] * 20 and len(failed) == 1
    keys = {values["key"] for values in done.values()}
    left = keys.pop()
    progress = LiveProgress()
    again, failed_again = split(on_ray([folder], task, session, folder, Sleeper, done=set(keys), progress=progress))
    assert [values["key"] for values in again.values()] == [left] and failed_again == failed


@pytest.mark.slow
def test_folders_of_pictures_as_videos(session: ClusterSession, folder: Path, tmp_path: Path) -> None:
    for place in ("a", "b/c"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (64, 48), (80 * number, 0, 0)).save(tmp_path / place / f"{number}.png")
    os.link(folder / "00.mp4", tmp_path / "b" / "film.mp4")
    task = replace(TASK, preset=replace(TASK.preset, sampling=Sampling(frames=4, source_fps=3)))
    outcomes = split(on_ray([tmp_path], task, session, tmp_path, Sleeper, recursive=True, as_video=True))
    assert outcomes == here(tmp_path, task, Sleeper(), recursive=True, as_video=True)
    ends = {Path(path).name: values["segments"][0]["end_seconds"] for path, values in outcomes[0].items()}
    assert ends == {"a": 1.0, "c": 1.0, "film.mp4": 2.0} and not outcomes[1]


@pytest.mark.slow
def test_what_is_said_goes_into_prompts(session: ClusterSession, tmp_path: Path) -> None:
    """Readers transcribe, and the models choose as many lines as fit."""
    make_film(tmp_path / "film.mp4", [0.5, 1.5], seconds=3)
    sampling = Sampling(frames=2, speech=True, speech_model="loudest")
    task = Task(replace(TASK.preset, prompt="Why?", sampling=sampling))
    lines = "Its subtitles, each line at the time when it is spoken:\n0.5s: beep 1\n"
    model, resize = partial(Reciter, len(lines) + len("Why?")), partial(open_hearing, tmp_path / "transcripts")
    ((_, values),) = split(on_ray([tmp_path / "film.mp4"], task, session, tmp_path, model, resize))[0].items()
    assert values["caption"] == f"{lines}Why?"
    assert values["notes"] == ["only 1 of 2 subtitle lines fit the context; they are spread evenly"]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "widths"), [(1, [ANSWERS_NO_WIDER]), (2, [ANSWERS_NO_WIDER, READS_NO_WIDER])])
def test_a_video_that_kills_workers_becomes_a_failure_and_the_others_go_on(
    workers: int, widths: list[int], session: ClusterSession, folder: Path, tmp_path: Path
) -> None:
    """The records of the others are the same as without Ray."""
    some = replace(session, min_workers=workers, max_workers=workers, readers=workers)
    answered, *read = (make_clip(tmp_path / f"{width}.mp4", range(8), size=(width, 64)) for width in widths)
    deaths = tmp_path / "deaths"
    paths = [*read, *sorted(folder.glob("*.mp4")), answered]  # read by different tasks
    models = partial(Sleeper, deaths=deaths), partial(open_small, deaths)
    done, failed = split(on_ray(paths, TASK, some, folder, *models))
    for path in (answered, *read):
        assert failed.pop(str(path)) == f"{path}: given up: 2 workers died while they processed it"
    assert len({values["caption"] for values in done.values()}) == 20 and list(failed) == [str(folder / "broken.mp4")]
    assert (done, failed) == here(folder, TASK, Sleeper())
    died = deaths.read_text().splitlines()
    assert died.count("reading") == 2 * len(read) and len(died) == 2 + 2 * len(read)
    first, second = (int(line.split()[1]) for line in died if line != "reading")
    assert first >= second == 1, "alone the second time"


@pytest.mark.slow
def test_a_stop_only_finishes_what_is_running(session: ClusterSession, folder: Path, tmp_path: Path) -> None:
    stop, count = Event(), 0
    copies = [tmp_path / f"{number:03d}.mp4" for number in range(150)]
    for copy in copies:
        os.link(folder / "00.mp4", copy)
    outcomes = on_ray(copies, TASK, session, tmp_path, partial(Sleeper, 0.1), batch_size=4, stop=stop)
    for _ in outcomes:
        stop.set()
        count += 1
    assert 1 <= count < 75


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_run(one: ClusterSession, folder: Path) -> None:
    broken = partial(open_model, str(folder / "none"))
    with pytest.raises(LlvidError, match=r"the model folder .* doesn't exist"):
        list(on_ray([folder], TASK, one, folder, broken))


@pytest.mark.slow
def test_an_estimate_is_measured_on_a_sample_of_what_is_left(session: ClusterSession, folder: Path) -> None:
    first = on_ray([folder / "00.mp4"], TASK, session, folder, Sleeper)
    done = {outcome.key for outcome in first if isinstance(outcome, Record)}
    paths = [str(folder), str(folder / "none.mp4")]
    got = estimate(
        paths,
        TASK,
        session,
        open_model=partial(Sleeper, 0.05),
        open_resize=open_small,
        done=done,
        output_folder=str(folder),
    )
    assert (got.todo, got.done, got.unreadable, got.sample, got.failed) == (20, 1, 1, 20, 1)
    assert 0.05 <= got.answer_seconds < 5 and 0 < got.read_seconds < 10
    assert got.worker_hours == pytest.approx(20 * got.answer_seconds / 3600)
    assert got.hours(2, 1000) == pytest.approx(got.worker_hours / 2)


def values_by_id(answers: Path) -> dict[Any, dict[str, Any]]:
    """The records of a file, without what they took."""
    found = {}
    for values in map(json.loads, answers.read_text().splitlines()):
        scores = {choice: pytest.approx(value, abs=1e-4) for choice, value in values.get("scores", {}).items()}
        assert values["id"] not in found
        found[values["id"]] = {**values, "scores": scores, "usage": None}
    return found


def connecting(session: ClusterSession, count: list[int]) -> Callable[[ExitStack], ClusterSession]:
    def connect(_: ExitStack) -> ClusterSession:
        count.append(1)
        return session

    return connect


@pytest.mark.slow
def test_a_question_set_has_the_same_records_and_resumes_either_way(one: ClusterSession, tmp_path: Path) -> None:
    questions = demo_questions(6, folder=tmp_path)
    gone = replace(questions.questions[0], id="gone", video=str(tmp_path / "gone.mp4"))
    evaluation = Evaluation(replace(questions, questions=(*questions.questions, gone)), load_preset("demo"))
    whole, mixed, connects = tmp_path / "whole.jsonl", tmp_path / "mixed.jsonl", list[int]()
    failed = [outcome for outcome in evaluate(evaluation, whole, model="demo") if isinstance(outcome, Failure)]
    on_cluster = partial(ClusterRun, connect=connecting(one, connects))
    for make_run, before, ends_after in ((AnsweredRun, 0, 3), (on_cluster, 3, 12)):
        with evaluate(evaluation, mixed, model="demo", make_run=make_run) as asking:
            assert asking.summary.done_before == before
            for outcome in asking:
                if isinstance(outcome, Failure):
                    assert outcome.values in [each.values for each in failed]
                if asking.summary.done == ends_after:
                    break
    asking = evaluate(evaluation, mixed, model="demo")
    assert asking.summary.done_before == 15 and len(list(asking)) == 6
    assert (asking.summary.done, asking.summary.failed) == (4, len(failed)) == (4, 2)
    assert values_by_id(mixed) == values_by_id(whole)
    rest = replace(evaluation, questions=questions)
    assert not list(evaluate(rest, mixed, model="demo", make_run=on_cluster)) and connects == [1]


def test_a_file_of_requests(one: ClusterSession, folder: Path, tmp_path: Path) -> None:
    make_film(tmp_path / "film.mp4", [0.5, 1.5], seconds=3)
    lines = [
        {"id": 1, "video": str(folder / "00.mp4"), "question": "What?"},
        {"id": 2, "video": str(folder / "00.mp4"), "question": "Where?", "frames": 2},
        {"id": 3, "video": str(folder / "broken.mp4"), "question": "Who?"},
        {"id": 4, "video": "film.mp4", "question": "Why?", "speech": True, "speech_model": "loudest", "frames": 2},
        {"id": 5, "video": "film.mp4", "question": "When?", "frames": 2},
    ]
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spoken = "Its subtitles, each line at the time when it is spoken:\n0.5s: beep 1\n"
    model, resize = partial(Reciter, len(spoken) + len("Why?")), partial(open_hearing, tmp_path / "transcripts")
    resize()  # here, a speech model's name is checked
    on_cluster = partial(ClusterRun, connect=connecting(one, []), open_model=model, open_resize=resize)
    outcomes = list(answer_file(requests, answers, preset=TASK.preset, model=model(), make_run=on_cluster))
    found = values_by_id(answers)
    texts = {number: values["answer"] for number, values in found.items()}
    assert texts == {1: "What?", 2: "Where?", 4: f"{spoken}Why?", 5: "When?"}
    assert found[4]["notes"] == ["only 1 of 2 subtitle lines fit the context; they are spread evenly"]
    (failure,) = (outcome for outcome in outcomes if isinstance(outcome, Failure))
    assert failure.values["id"] == 3 and "broken.mp4" in failure.values["error"]
