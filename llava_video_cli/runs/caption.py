"""Captions: one prompt for every video, for the whole of it or for a window every so many seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..conversation import Answer, FinishReason, Media, Request, Segment, Usage
from ..errors import LlvidError, MediaError
from ..preset import Preset
from ..prompt.subtitles import Count, LineCount, Subtitles, notes_of
from ..system.files import fingerprint
from ..video import Resize, read_frames, read_windows
from ..video.files import Status
from ..video.image import is_picture, read_image
from ..video.limits import Limits
from .prefetch import JobRequest, Result
from .preflight import ModelSource
from .record import Failure, Record, media_values, path_to_text

_REASONS: tuple[FinishReason, ...] = ("stop", "length", "repetition")  # of several, the last one counts


@dataclass(frozen=True)
class Task:
    """What is asked about every video of a run; `preset` holds the prompt and all settings.

    `every_seconds` cuts a video into windows; None takes the whole of it. `asked` is what else makes another caption
    of the same prompt: how the weights were asked for. A `drawn_seed`, which nobody asked for, does not. `subtitles`
    are for a run on one video.
    """

    preset: Preset
    every_seconds: float | None = None
    asked: tuple[tuple[str, Any], ...] = ()
    drawn_seed: int | None = None
    subtitles: Subtitles | None = None

    @cached_property
    def fingerprint(self) -> bytes:
        """Names all that decides what is said of a video: the model, the prompt, the settings."""
        preset = self.preset
        decides = {
            "model": os.path.abspath(preset.model) if Path(preset.model).is_dir() else preset.model,  # noqa: PTH100 - keeps links
            "prompt": preset.prompt,
            "system": preset.system,
            "sampling": asdict(preset.sampling),
            "generation": asdict(preset.generation.asked(self.drawn_seed)),
            "every_seconds": self.every_seconds,
            "asked": self.asked,
            **({"timestamps": True} if preset.timestamps else {}),
            **({"subtitles": self.subtitles.digest} if self.subtitles else {}),
        }
        return bytes.fromhex(fingerprint(json.dumps(decides, sort_keys=True).encode()))

    def key(self, place: str, status: Status) -> str:
        """Return the key of a video's record; `place` is its path as seen from the output file."""
        name = f"{status.st_size}/{status.st_mtime_ns}/".encode() + os.fsencode(place)
        return fingerprint(name, self.fingerprint)

    def request(self, media: Media, count: Count) -> tuple[Request, LineCount | None]:
        """Return the request for a video's caption, with the subtitles that fit by `count`, which is `Model.budget`."""
        (request,), heard = self.preset.requests((self.preset.prompt,), (media,), self.subtitles, count)
        return request, heard


def caption_task(
    preset: Preset,
    source: ModelSource,
    every_seconds: float | None = None,
    drawn_seed: int | None = None,
    subtitles: Subtitles | None = None,
) -> Task:
    """Return what is asked about every video, of the model that `source` names."""
    quantize = {"quantize": preset.quantize} if preset.quantize in ("8bit", "4bit") else {}
    asked = dict(source.asked or ()) | quantize
    return Task(preset, every_seconds, tuple(sorted(asked.items())), drawn_seed, subtitles)


@dataclass(frozen=True)
class _Part:
    """What is kept of a window's media: its times, and what `media_values` says of it."""

    start_seconds: float
    end_seconds: float
    values: Mapping[str, Any]
    heard: LineCount | None = None


@dataclass(frozen=True)
class CaptionJob:
    """One video of a run. `settings` are those of `settings_values`, `count` is `Model.budget`."""

    name: str
    key: str
    task: Task
    settings: Mapping[str, Any]
    count: Count

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest]:
        """Yield the question about the whole, or one about each window."""
        sampling, every = self.task.preset.sampling, self.task.every_seconds
        if is_picture(self.name):
            yield self._question(read_image(self.name))
        elif every is None:
            yield self._question(read_frames(self.name, sampling, limits=limits, resize=shrink))
        else:
            for _, _, frames in read_windows(self.name, every, sampling, limits=limits, resize=shrink):
                yield self._question(frames)

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        """Return the record, or why there is none: half of a video's windows are no caption of it."""
        answers: list[tuple[_Part, Answer]] = []
        for question, result in results:
            if isinstance(result, LlvidError):
                error = error or result
            else:
                answers.append((question.about, result))
        answers.sort(key=lambda pair: pair[0].start_seconds)
        if error is None and not answers:
            error = MediaError(f"{self.name}: nothing in it to caption")
        if error is not None:
            return [Failure({"video_path": path_to_text(self.name)}, error)]
        return [Record(caption_values(self.name, self.key, self.task.preset.prompt, answers, self.settings))]

    def _question(self, media: Media) -> JobRequest:
        request, heard = self.task.request(media, self.count)
        return JobRequest(request, _Part(*media.part_seconds, media_values(self.name, media), heard))


def caption_values(
    path: str,
    key: str,
    prompt: str,
    answers: Sequence[tuple[_Part, Answer]],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON values of a caption's record.

    Readers of long files of JSON guess a column's type from its beginning: so every record has the same fields with the
    same types, `notes` is one text, and there is always a segment.
    """
    parts = [part for part, _ in answers]
    segments = [Segment(part.start_seconds, part.end_seconds, answer.text) for part, answer in answers]
    notes = dict.fromkeys(line for part in parts for line in part.values["notes"])
    notes |= dict.fromkeys(notes_of(part.heard for part in parts))
    return {
        "video_path": path_to_text(path),
        "caption": " ".join(answer.text for _, answer in answers),
        "segments": [asdict(segment) for segment in segments],
        "prompt": prompt,
        "model": settings["model"],
        "finish_reason": max((answer.finish_reason for _, answer in answers), key=_REASONS.index),
        "frames": join_frames([part.values["frames"] for part in parts]),
        "notes": "; ".join(notes),
        "usage": asdict(total_usage([answer.usage for _, answer in answers])),
        "settings": dict(settings),
        "key": key,
    }


def join_frames(parts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Join what is said of the frames of each window."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    times = [time for part in known for time in part["times_seconds"]]
    return {**known[0], "count": len(times), "times_seconds": times}


def total_usage(usages: Sequence[Usage]) -> Usage:
    """Add up what the windows cost; the first token is the first window's."""
    return replace(
        usages[0],
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        generated_tokens=sum(usage.generated_tokens for usage in usages),
        total_seconds=sum(usage.total_seconds for usage in usages),
        peak_memory_bytes=max(usage.peak_memory_bytes for usage in usages),
    )
