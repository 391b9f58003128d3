"""`llvid caption`: one prompt for every video of a folder, or for one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MediaError, UsageError
from ..prompt.subtitles import Subtitles, notes_of
from ..runs.caption import Task, caption_folder, caption_task, default_output
from ..runs.formats import SIDECARS, Sidecar, Sidecars, check_output
from ..runs.media import check_media
from ..runs.preflight import expected_request, largest_requests
from ..runs.record import CutNote, media_values
from ..runs.training_set import CaptionForm, Paths
from ..speech.transcripts import hear
from ..video import inspect
from ..video.files import is_sequence
from ..video.sampling import Every, clock
from ..video.spool import begins_as_medium, is_spooled
from . import console, decisions
from .answer import answer_all, show_answer
from .download import typed_media
from .options import (
    AnswerFlags,
    AnyModelFlags,
    ClusterFlags,
    FrameFlags,
    OutputFlags,
    PresetFlag,
    RunFlags,
    SpeechFlag,
    TextFlags,
    flag,
)
from .run import carry_out, confirm_overwrite, load, run_options
from .settings import Settings, check_text, check_used_flags, settle, settle_every, settle_subtitles

HELP = """Caption videos: one, or a folder of thousands.

Examples:

    llvid caption video.mp4

    llvid caption clips/ -o captions.jsonl

    llvid caption clips/ --limit 3

    llvid caption frames/ --as-video --source-fps 2

    llvid caption clips/ --recursive --sidecar txt --prompt "Describe this video in one sentence."

    llvid caption clips/ --sidecar txt --prefix "ohwx man," --strip-preamble --whole-sentences

    llvid caption clips/ -o clips/metadata.jsonl

    llvid caption film.mkv --every 10 -o film.srt

    llvid caption film.mkv --every scene -o film.srt

    llvid caption clips/ -o people.jsonl --prompt "Is a person in it?" --choices yes,no --where "yes>0.8"

    find . -name "*.mp4" -print0 | llvid caption - -o captions.csv

    llvid caption videos.parquet -o captions.jsonl --ray auto --gpus 8
"""


@dataclass(frozen=True)
class TrainingFlags:
    """How captions and paths are written for a training set."""

    prefix: str = flag(None, "Begin each caption with this text, such as a trigger word.", metavar="TEXT", default="")
    suffix: str = flag(None, "End each caption with this text.", metavar="TEXT", default="")
    strip_preamble: bool = flag(None, 'Remove "The video shows" and similar words.', "--strip-preamble", default=False)
    whole_sentences: bool = flag(
        None, "Remove the unfinished last sentence of a caption that was cut off.", "--whole-sentences", default=False
    )
    written_paths: Paths = flag(
        None, "How the paths of videos are written in records [default: as-given].", "--paths", default="as-given"
    )

    @property
    def form(self) -> CaptionForm:
        """How captions are written."""
        return CaptionForm(self.prefix, self.suffix, self.strip_preamble, self.whole_sentences)


def caption(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", show_default=False,
            help="Videos, pictures and folders; `-` reads paths from stdin, one per line or separated by NUL.",
        ),
    ],
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", show_default=False,
            help="A .jsonl, .csv or .parquet file, for one video also .txt, .srt, .vtt or .json [default: stdout].",
        ),
    ] = None,
    sidecar: Annotated[
        list[str] | None,
        typer.Option(
            "--sidecar", metavar="txt|srt|vtt|json", show_default=False,
            help="Write a file next to each video; repeatable.",
        ),
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option(
            "--output-dir", metavar="DIR", show_default=False,
            help="Write the sidecars to this folder, with the subfolders of the videos.",
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Also search subfolders.")] = False,
    as_video: Annotated[
        bool,
        typer.Option(
            "--as-video",
            help="The pictures of a folder, or of a pattern such as 'frame_*.jpg', are the frames of one video; with "
            "--recursive, those of each subfolder.",
        ),
    ] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept an empty answer as a caption.")
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="The prompt [default: the preset's].", show_default=False),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            "--where", metavar="CONDITION", show_default=False,
            help="With --choices: write only records with such a score to the output, as in 'yes>0.8'. The others go "
            "to NAME.rest.jsonl; another condition moves records between the two files.",
        ),
    ] = None,
    every: Annotated[
        str | None,
        typer.Option(
            "--every",
            metavar="SECONDS|scene",
            help="Caption each window of this length, or each shot.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="Take only the first N files, to try a folder.", show_default=False
        ),
    ] = None,
    training: TrainingFlags,
    run: RunFlags,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    speech: SpeechFlag,
    preset: PresetFlag,
    cluster: ClusterFlags,
    output: AnswerFlags,
) -> None:  # fmt: skip
    """Caption what is to be captioned, and say what came of it."""
    settings = settle(preset, model, frames, text)
    check_used_flags(frames, settings.preset, every, text)
    output.detail(*decisions.chosen(settings, preset, model))
    if prompt is not None:
        check_text(prompt, "the prompt")
        settings = replace(settings, preset=replace(settings.preset, prompt=prompt))
    for added in (training.prefix, training.suffix):
        check_text(added, "what is added to captions")
    window = settle_every(every, "--every", settings.preset)
    is_url = len(paths) == 1 and paths[0] != "-" and cluster == ClusterFlags() and is_spooled(paths[0])
    if len(paths) > 1 and any(path != "-" and is_spooled(path) for path in paths):
        hint = "download the videos into a folder, then: llvid caption FOLDER"
        raise UsageError(f"llvid caption takes one URL alone, got {len(paths)} paths", hint)
    if is_url and sidecar:
        raise UsageError("--sidecar needs files: a URL has no folder", "write one file with -o")
    with typed_media(paths if is_url else (), output) as fetched:
        paths = list(fetched) or paths
        if frames.source_fps is not None and not as_video:
            raise UsageError("--source-fps needs --as-video", "without it, each picture has a caption of its own")
        is_file = len(paths) == 1 and paths[0] != "-" and is_sequence(paths[0]) == as_video
        is_file = is_file and not (as_video and recursive)
        subtitles = settle_subtitles(speech, paths if is_file else (), settings.preset)
        kinds = sidecar_kinds(sidecar or ())
        if output_dir and not kinds:
            raise UsageError("--output-dir needs --sidecar", "choose --sidecar txt, srt, vtt or json")
        source = settings.source_of(model)
        if cluster != ClusterFlags():
            from .cluster import check_flags, on_cluster

            check_flags(cluster, settings)
            for name, is_given in (("limit", limit is not None), ("paths", training.written_paths != "as-given")):
                if is_given:
                    raise UsageError(f"--{name} can't be used with --ray")
            if kinds:
                hint = "use -o; then run the same command with --sidecar, without --ray: it only writes the sidecars"
                raise UsageError("--sidecar can't be used with --ray", hint)
            if subtitles is not None:
                raise UsageError("--subtitles can't be used with --ray: it needs exactly one video")
            task = caption_task(
                settings.preset, source, window, settings.drawn_seed, allow_empty=allow_empty, form=training.form
            )
            names = listed_paths(paths)
            if code := on_cluster(
                names, to, task, settings, output, run, cluster, recursive=recursive, as_video=as_video, where=where
            ):
                raise typer.Exit(code)
            return
        if is_file and not (kinds or to or output.json or where):
            for field in fields(training):
                if getattr(training, field.name) != field.default:
                    option = f"--{field.name.removeprefix('written_').replace('_', '-')}"
                    raise UsageError(f"{option} needs -o, --sidecar or --json: a streamed caption can't be changed")
            if run.timeout != RunFlags.timeout:
                hint = "LLVID_LIMITS=4 allows an hour for reading a video"
                raise UsageError("--timeout needs -o, --sidecar or --json", hint)
            _stream(paths[0], window, settings, output, subtitles)
            return
        if to is not None:
            check_output(Path(to), one_video=is_file and not kinds)
        if all(path != "-" and not os.path.exists(path) for path in paths):  # noqa: PTH110 - quick
            check_media(paths[:1])  # a typing error is reported at once
        names, sidecars = listed_paths(paths), Sidecars(kinds, Path(output_dir) if output_dir else None)
        table = Path(to) if to is not None else default_output(names, sidecars)
        if table is not None and run.overwrite:
            confirm_overwrite(table, output)
        spinner = console.Progress(output.quiet)
        captions = caption_folder(
            names,
            table,
            preset=settings.undrawn_preset,
            model=source,
            every_seconds=window,
            subtitles=subtitles,
            sidecars=sidecars,
            recursive=recursive,
            as_video=as_video,
            overwrite=run.overwrite,
            allow_empty=allow_empty,
            where=where,
            limit=limit,
            form=training.form,
            written_paths=training.written_paths,
            options=run_options(settings, output, run, spinner),
        )
        if code := carry_out(captions, settings.notes, output, spinner, to_stdout=table is None):
            raise typer.Exit(code)


def listed_paths(paths: Sequence[str]) -> list[str]:
    """Return the paths, with those that stdin lists in the place of `-`; lists in files stay."""
    if paths.count("-") > 1:
        raise UsageError("stdin can be read only once")
    return [name for path in paths for name in (_stdin_paths() if path == "-" else [path])]


def _stdin_paths() -> list[str]:
    if sys.stdin is None:
        raise UsageError("can't read the paths: stdin is closed")
    content = sys.stdin.buffer.read()
    if begins_as_medium(content):
        hint = 'llvid ask - "Describe the video." asks about a video from stdin'
        raise UsageError("stdin has a video, but paths are expected", hint)
    return paths_in(content)


def paths_in(content: bytes) -> list[str]:
    """Return the paths of a list, one per line or separated by NUL."""
    return [os.fsdecode(line) for line in content.split(b"\0" if b"\0" in content else b"\n") if line]


def sidecar_kinds(names: Sequence[str]) -> tuple[Sidecar, ...]:
    """Return the formats that --sidecar names; raises `UsageError`."""
    for name in names:
        if name not in SIDECARS:
            raise UsageError(f"--sidecar must be one of {', '.join(SIDECARS)}, got {name!r}")
    return tuple(kind for kind in SIDECARS if kind in names)


def _stream(
    path: str, every: Every | None, settings: Settings, output: OutputFlags, subtitles: Subtitles | None
) -> None:
    """Write the caption of one video to stdout as it comes; of windows, a line each with its times."""
    if every is None:
        answer_all([path], [settings.preset.prompt], settings, output, subtitles)
        return
    if check_media([path]) != [None]:
        raise MediaError(f"{path} is a picture, which has no windows")
    task = Task(settings.preset, every, subtitles=subtitles)
    largest = largest_requests(task, rope_auto=settings.rope_auto)
    model, counts = load(settings, output, largest, lambda: [expected_request(path, task)]), []
    cut = CutNote()
    video = inspect(path, source_fps=settings.preset.sampling.source_fps)
    with console.progress(output.quiet) as progress:
        windows = video.windows(every, settings.preset.sampling, progress=progress.watch("looking for the shots"))
    for window in windows:
        frames = hear(video.read(window, resize=model.shrink), settings.preset.sampling)
        output.note(*cut.lines(media_values(path, frames)["frames"]))
        times = "{}-{}  ".format(*map(clock, frames.part_seconds))
        console.write(times)
        with console.progress(output.quiet) as progress:
            request, line_count = task.request(frames, model.budget)
            show_answer(model.stream(request), progress, silent=False, column=len(times))
        counts.append(line_count)
    output.note(*notes_of(counts))
