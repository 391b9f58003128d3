"""Transcripts of many videos: what is said in each, to a table or to files next to the videos, resumable."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import LlvidError, MediaError, UsageError, described
from ..speech import SpeechOptions, Transcriber
from ..speech.transcripts import Transcript, Transcripts
from ..speech.whisper import check_options
from ..system.files import fingerprint
from ..video.files import Found
from ..video.sound import has_sound
from .caption import RunFiles, RunTask, default_output, open_files
from .formats import SIDECARS, Sidecars
from .record import Failure, Record, path_to_text, versions
from .resumable import ResumableRun, RunOptions, RunPlan

_RECORDS = "llvid-transcripts.jsonl"  # where records go when only sidecars were asked for
_LIBRARIES = ("faster-whisper", "ctranslate2")


@dataclass(frozen=True)
class TranscriptTask(RunTask):
    """What is done with every video: the part `[start, end)` is transcribed, None for all of it."""

    options: SpeechOptions
    start_seconds: float | None = None
    end_seconds: float | None = None

    @cached_property
    def values(self) -> dict[str, Any]:
        """All that decides what comes of a video."""
        model = self.options.model
        place = os.path.abspath(model) if Path(model).is_dir() else model  # noqa: PTH100 - keeps links
        return {**asdict(self), "options": asdict(replace(self.options, model=place))}

    @cached_property
    def fingerprint(self) -> bytes:
        """A digest of the values."""
        return bytes.fromhex(fingerprint(json.dumps(["transcript", self.values], sort_keys=True).encode()))

    def record(self, path: str, transcript: Transcript, key: str) -> Record:
        """Return the record of a video's transcript."""
        segments = [
            {"start_seconds": each.start_seconds, "end_seconds": each.end_seconds, "text": each.text}
            for each in transcript.segments
        ]
        words = [asdict(word) for each in transcript.segments for word in each.words]
        values = {
            "video_path": path_to_text(path),
            "transcript": " ".join(filter(None, (each.text for each in transcript.segments))),
            "language": transcript.language,
            "segments": segments,
            **({"words": words} if self.options.words else {}),
            "model": self.options.model,
            "notes": list(transcript.notes),
            "settings": {
                **{name: value for name, value in asdict(self.options).items() if name != "model"},
                "start_seconds": self.start_seconds,
                "end_seconds": self.end_seconds,
                "versions": versions(*_LIBRARIES),
                "request_key": self.request_key(path),
            },
            "key": key,
        }
        return Record(values)


class TranscriptRun(ResumableRun):
    """A run whose records are transcripts, one video after the other. No model is loaded unless one is needed."""

    def __init__(
        self, files: RunFiles, task: TranscriptTask, transcripts: Transcripts, options: RunOptions, opened: ExitStack
    ) -> None:
        folder_plan = files.plan
        plan = RunPlan(
            lambda *_: (), len(folder_plan.videos), folder_plan.done + folder_plan.skipped, folder_plan.failures,
            (lambda _: files.is_single), files.write, folder_plan.drop_stale, keys=folder_plan.keys,
        )  # fmt: skip
        super().__init__(plan, files.output, options=options, opened=opened)
        self._videos, self._task, self._transcripts = folder_plan.videos, task, transcripts

    def _outcomes(self) -> Iterator[Record | Failure]:
        task = self._task
        for found, key in self._videos:
            if self.stop.is_set():
                return
            try:
                transcript = self._transcripts.transcript(
                    found.path, task.start_seconds, task.end_seconds, limits=self._options.limits
                )
            except MediaError as error:
                yield self._failure(found, error)
            except LlvidError:
                raise  # the model: every other video would fail, too
            except Exception as error:  # noqa: BLE001 - one odd file must not end the run
                yield self._failure(found, MediaError(f"{found.path}: can't be transcribed: {described(error)}"))
            else:
                if len(self._videos) == 1:
                    for line in transcript.notes:
                        self._options.notify(f"{found.path}: {line}")
                yield task.record(found.path, transcript, key)

    def _failure(self, found: Found, error: MediaError) -> Failure:
        return Failure({"video_path": path_to_text(found.path)}, error, self._task.request_key(found.path))


def transcribe_folder(
    paths: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    *,
    speech: SpeechOptions | Transcripts | None = None,
    transcriber: Transcriber | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    sidecars: Sidecars | None = None,
    recursive: bool = False,
    overwrite: bool = False,
    options: RunOptions | None = None,
) -> ResumableRun:
    """Return the run that transcribes files, and videos and sound in folders; iterate over it for the records.

    Records in `output` (.jsonl) are not made again, unless `overwrite`. Without `output`, records are
    only yielded; `sidecars` then have their records in `llvid-transcripts.jsonl` beside them. One video may go to .txt,
    .srt, .vtt or .json. `transcriber` replaces Whisper.

    Raises `UsageError` for options or an output that make no sense, `LlvidError` for an output that can't be used or
    without faster-whisper, `MediaError` if none of the files is there; iterating raises `ModelError` for a model that
    can't be loaded.
    """
    names = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    options, sidecars = options or RunOptions(), sidecars or Sidecars()
    transcripts = speech if isinstance(speech, Transcripts) else Transcripts(speech or SpeechOptions(), transcriber)
    if transcriber is None:
        check_options(transcripts.options)
    task = TranscriptTask(transcripts.options, start_seconds, end_seconds)
    to = Path(output) if output is not None else default_transcripts(names, sidecars)
    if to is not None:
        check_transcripts(to, one_video=len(names) == 1 and not sidecars.kinds)
    with ExitStack() as opened:
        files = open_files(
            names, to, task, sidecars, opened, recursive=recursive, overwrite=overwrite, notify=options.notify,
            check=has_sound, pictures=False,
        )  # fmt: skip
        return TranscriptRun(files, task, transcripts, options, opened.pop_all())


def default_transcripts(names: list[str], sidecars: Sidecars) -> Path | None:
    """Return where records go when nobody said: with sidecars, to a file beside them; else nowhere."""
    return default_output(names, sidecars, _RECORDS)


def check_transcripts(path: Path, *, one_video: bool) -> None:
    """Raise `UsageError` for a file that transcripts can't be written to, by its ending."""
    suffix = path.suffix.lower()
    if suffix != ".jsonl" and not (one_video and suffix[1:] in SIDECARS):
        files = ", or, for a single video, in .txt, .srt, .vtt or .json"
        raise UsageError(f"{path} must end in .jsonl{files}")
