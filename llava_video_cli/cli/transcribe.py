"""`llvid transcribe`: what is said in videos, with times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..runs.formats import SIDECARS, Sidecars
from ..runs.resumable import RunOptions
from ..runs.transcribe import check_transcripts, default_transcripts, transcribe_folder
from ..speech import DEFAULT_MODEL, SpeechOptions
from ..speech.transcripts import Transcripts
from ..speech.whisper import check_options
from ..video.files import file_of
from ..video.limits import Limits
from ..video.sampling import clock, parse_time
from ..video.spool import begins_as_medium, is_spooled
from . import console
from .caption import listed_paths, paths_in, sidecar_kinds
from .download import fetch_speech, typed_media
from .options import OutputFlags, option
from .run import carry_out, confirm_overwrite

_HEAD_BYTES = 4096  # of stdin, which tell whether it is a medium
HELP = """Write down what is said in videos, with times: one, or a folder of thousands.

Whisper runs on this machine, and nothing leaves it. Times are those of a player's clock, as those of the frames.
Transcripts are kept in the user's cache folder, so that the same video is not transcribed twice.

Examples:

    llvid transcribe film.mkv

    llvid transcribe film.mkv -o film.srt

    yt-dlp -o - URL | llvid transcribe - -o talk.srt

    llvid transcribe film.mkv --translate --speech-model medium -o film.en.vtt

    llvid transcribe talks/ --recursive --sidecar srt
"""


def transcribe(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO...", show_default=False,
            help="Videos, sound files, folders, or one URL; `-` reads a video from stdin, or paths, one per line or "
            "separated by NUL.",
        ),
    ],
    *,
    to: Annotated[
        str | None,
        option(
            "A .jsonl file, for one video also .srt, .vtt, .txt or .json [default: stdout].", "--output", "-o",
            metavar="PATH",
        ),
    ] = None,
    sidecar: Annotated[
        list[str] | None, option("Write a file next to each video; repeatable.", metavar="txt|srt|vtt|json")
    ] = None,
    output_dir: Annotated[
        str | None,
        option("Write the sidecars to this folder, with the subfolders of the videos.", metavar="DIR"),
    ] = None,
    recursive: Annotated[bool, option("Also search subfolders.", "--recursive", "-r")] = False,
    speech_model: Annotated[
        str, option("Name (tiny, base, small, medium, large-v3, turbo, ...), folder or hub id.", metavar="NAME",
                    show_default=True),
    ] = DEFAULT_MODEL,
    language: Annotated[
        str | None, option("The language spoken, such as de [default: detected].", metavar="CODE")
    ] = None,
    translate: Annotated[bool, option("Write English, also where another language is spoken.", "--translate")] = False,
    no_vad: Annotated[
        bool, option("Transcribe all sound, also where the voice activity detector finds no speech.", "--no-vad")
    ] = False,
    start: Annotated[
        str | None, option("Start of the part to use: seconds, 1m30s or [HH:]MM:SS.", metavar="TIME")
    ] = None,
    end: Annotated[
        str | None, option("End of the part to use: seconds, 1m30s or [HH:]MM:SS.", metavar="TIME")
    ] = None,
    timeout: Annotated[
        float, option("Skip a video whose sound takes longer than this to read.", min=0.1, metavar="SECONDS",
                      show_default=True),
    ] = 900.0,
    overwrite: Annotated[
        bool, option("Start over instead of resuming; on a terminal, ask first.", "--overwrite")
    ] = False,
    output: OutputFlags,
) -> None:  # fmt: skip
    """Transcribe what is to be transcribed, and say what came of it."""
    kinds = sidecar_kinds(sidecar or ())
    if output_dir and not kinds:
        raise UsageError("--output-dir needs --sidecar", "choose --sidecar txt, srt, vtt or json")
    part = None if start is None else parse_time(start), None if end is None else parse_time(end)
    if part[1] is not None and part[1] <= (part[0] or 0.0):
        raise UsageError(f"the end ({end}) must come after the start ({start or 0})")
    has_json = output.json or "json" in kinds or (to is not None and Path(to).suffix.lower() in (".json", ".jsonl"))
    speech = SpeechOptions(speech_model, language, translate, not no_vad, words=has_json)
    check_options(speech)
    spinner = console.Progress(output.quiet)
    transcripts = Transcripts(speech, fetch=lambda name: fetch_speech(name, spinner, quiet=output.quiet))
    is_typed = len(paths) == 1 and is_spooled(paths[0])
    limits = Limits(seconds=timeout)
    with typed_media(paths if is_typed else (), output, "transcribe -") as fetched:
        names = _stdin(fetched[0]) if paths == ["-"] else list(fetched) or listed_paths(paths)
        is_spool = is_typed and names[:1] == list(fetched)
        if is_spool and kinds:
            raise UsageError("--sidecar needs files: a URL and stdin have no folder", "write one file with -o")
        is_file = is_spool or (len(paths) == 1 and paths != ["-"] and not Path(paths[0]).is_dir())
        if is_file and not (kinds or to or output.json):
            _stream(names[0], part, transcripts, limits, output, spinner)
            return
        if to is not None:
            check_transcripts(Path(to), one_video=is_file and not kinds)
        sidecars = Sidecars(kinds, Path(output_dir) if output_dir else None)
        table = Path(to) if to is not None else default_transcripts(names, sidecars)
        if table is not None and overwrite and table.suffix.lower()[1:] not in SIDECARS:
            confirm_overwrite(table, output)
        run = transcribe_folder(
            names, table, speech=transcripts, start_seconds=part[0], end_seconds=part[1], sidecars=sidecars,
            recursive=recursive, overwrite=overwrite, options=RunOptions(limits=limits, notify=output.note),
        )  # fmt: skip
        if code := carry_out(run, (), output, spinner, verb="transcribed", to_stdout=table is None):
            raise typer.Exit(code)


def _stdin(path: str) -> list[str]:
    """Return stdin, which lies at a path, if it is a video or sound, else the paths that it lists."""
    with Path(file_of(path)).open("rb") as file:
        head = file.read(_HEAD_BYTES)
        return [path] if begins_as_medium(head) else paths_in(head + file.read())


def _stream(
    path: str,
    part: tuple[float | None, float | None],
    transcripts: Transcripts,
    limits: Limits,
    output: OutputFlags,
    spinner: console.Progress,
) -> None:
    """Write what is said in one video to stdout as it comes, a line each with its times."""
    notes: list[str] = []
    spinner.say("transcribing")
    try:
        for segment in transcripts.stream(path, *part, limits=limits, notes=notes):
            spinner.stop()
            times = (max(0.0, seconds) for seconds in (segment.start_seconds, segment.end_seconds))
            console.write("{}-{}  {}\n".format(*map(clock, times), " ".join(segment.text.split())))
            spinner.say("transcribing")
    finally:
        spinner.stop()
    output.note(*(f"{path}: {line}" for line in notes))
