"""How fast this machine reads videos and runs a model: figures, as they come.

All of a model's go through the two methods that every model has, so that one behind a server is measured the same way.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count, product
from typing import Any

from ..checkpoint.config import Checkpoint
from ..conversation import Generation, Request, Turn, Usage, join
from ..errors import LlvidError
from ..model import Model
from ..video import Frames, read_frames
from ..video.sampling import Sampling
from .alternating import Cell, Job, Series, take_turns

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, never come near one another


@dataclass(frozen=True)
class Plan:
    """What is measured: `runs` of each cell after one to warm up, in `seconds` for each precision of the model."""

    frames: tuple[int, ...] = (8, 16, 32)
    batches: tuple[int, ...] = (1, 8, 32)
    runs: int = 3
    seconds: float = 60.0
    new_tokens: int = 32
    prompt: str = "Describe this video."


@dataclass(frozen=True)
class Subject:
    """A model to be measured: how it is opened in one precision, named by `label`, and what is known of it beforehand.

    `weight_bytes` are those that loading reads, or makes if they are random. Of a model behind a server nothing is
    known: neither loading nor the bandwidth limit is measured.
    """

    label: str
    open: Callable[[], Model]
    facts: Checkpoint | None = None
    weight_bytes: int = 0
    is_random: bool = False


@dataclass
class Bench:
    """Figures of one video and any number of models. They may be asked for at any time, also after Ctrl-C."""

    video: str
    plan: Plan = field(default_factory=Plan)
    say: Callable[[str], None] = lambda _: None
    settings: list[dict[str, Any]] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)

    @property
    def cells(self) -> list[Cell]:
        """All figures so far, in the order in which they were begun."""
        return [series.cell for series in self.series if series.runs or series.note]

    @property
    def values(self) -> dict[str, Any]:
        """The JSON values of what was measured, and of all figures so far."""
        return {
            "plan": asdict(self.plan),
            "settings": self.settings,
            "cells": [cell.values for cell in self.cells],
        }

    def begin(self, *what: Any) -> Series:
        """Begin a new series, from the values of its cell."""
        self.series.append(Series(*what))
        return self.series[-1]

    def reading(self) -> None:
        """Measure how fast frames are read: those that are handed on, a second."""
        jobs = [
            Job((self.begin("read", "frames/s", None, frames),), partial(self._read, frames), frames)
            for frames in self.plan.frames
        ]
        take_turns(jobs, self.plan.runs, self.plan.seconds / 4, self.say)

    def model(self, subject: Subject) -> None:
        """Measure a model in one precision; what can't be measured has a note instead of figures."""
        verb = "make weights" if subject.is_random else "load"
        load, rate = self.begin(verb, "s", subject.label), self.begin(f"{verb}, speed", "GB/s", subject.label)
        self.say(f"loading, {subject.label}")
        if subject.facts is not None:
            from ..inference.families import llava_next_video as llava  # noqa: F401 - importing torch and transformers is no part of loading
        began = time.perf_counter()
        try:
            model = subject.open()
        except LlvidError as error:
            load.note = str(error)
            return
        if subject.facts is not None:
            load.runs.append(time.perf_counter() - began)
            rate.runs.append(subject.weight_bytes / load.runs[0] / 1e9)
        self.settings.append(model.settings)
        try:
            _Measured(self, subject, model).all()
        finally:
            device = model.settings.get("device")
            del model
            _give_back(device if subject.facts is not None else None)

    def _read(self, frames: int) -> Sequence[float | None]:
        began = time.perf_counter()
        taken = read_frames(self.video, Sampling(frames=frames))
        return [len(taken.images) / (time.perf_counter() - began)]


def _give_back(device: str | None) -> None:
    """Let the memory of a model go that nothing but itself refers to, so that the next one has it."""
    gc.collect()
    if device is not None:
        import torch

        from ..inference.device_memory import give_back

        give_back(torch.device(device))


@dataclass(frozen=True)
class _Limits:
    """What the machine allows a model at most: `step_bytes` are read for each new token."""

    copy_bytes_per_second: float
    operations_per_second: float
    step_bytes: int


class _Measured:
    """A loaded model under measurement."""

    def __init__(self, bench: Bench, subject: Subject, model: Model) -> None:
        self._bench, self._plan, self._subject, self._model = bench, bench.plan, subject, model
        self._limits = self._find_limits()
        self._frames: dict[int, Frames] = {}
        self._moves = count(1)
        self._peak_bytes = 0

    def all(self) -> None:
        """Measure all that the plan names."""
        plan, jobs = self._plan, []
        first = {frames: self._begin("first token", "s", frames) for frames in plan.frames}
        from_file = {frames: self._begin("first token, from file", "s", frames) for frames in plan.frames}
        tokens = {frames: self._begin("tokens", "tokens/s", frames) for frames in plan.frames}
        shares = {frames: self._begin("of the bandwidth limit", "", frames) for frames in plan.frames}
        for frames in plan.frames:
            cost = self._cost(frames)
            jobs.append(Job((first[frames], tokens[frames]), partial(self._stream, frames), cost))
            jobs.append(Job((from_file[frames],), partial(self._stream_from_file, frames), cost))
        for batch, frames in product(plan.batches, plan.frames):
            videos = self._begin("videos", "videos/s", frames, batch)
            jobs.append(Job((videos,), partial(self._batch, frames, batch), self._cost(frames, batch)))
        peak = self._begin("peak memory", "GB")
        try:
            take_turns(jobs, plan.runs, plan.seconds, self._bench.say, None if self._limits is None else 1.0)
        finally:
            if (limits := self._limits) is not None:
                most = limits.copy_bytes_per_second / limits.step_bytes
                for frames, series in tokens.items():
                    shares[frames].runs += [speed / most for speed in series.runs]
            if self._peak_bytes:
                peak.runs.append(self._peak_bytes / 1e9)

    def _stream(self, frames: int) -> Sequence[float | None]:
        usage = self._usage(self._fresh(frames))
        later = usage.generated_tokens - 1
        seconds = usage.total_seconds - usage.first_token_seconds
        return [usage.first_token_seconds, later / seconds if later and seconds > 0 else None]

    def _stream_from_file(self, frames: int) -> Sequence[float | None]:
        # from another moment of the first half each time, so that nothing is known of the frames
        start = self._seen(frames).info.duration_seconds / 2 * (next(self._moves) * _GOLDEN % 1)
        began = time.perf_counter()
        taken = read_frames(self._bench.video, Sampling(frames=frames, start_seconds=start), resize=self._model.shrink)
        read_seconds = time.perf_counter() - began
        return [read_seconds + self._usage(taken).first_token_seconds]

    def _batch(self, frames: int, batch: int) -> Sequence[float | None]:
        requests = [self._request(self._fresh(frames)) for _ in range(batch)]
        if (most := self._model.fits(requests[0])) < batch:
            raise LlvidError(f"only {most} fit the memory")
        began = time.perf_counter()
        answers = self._model.answer_all(requests)
        seconds = time.perf_counter() - began
        self._peak_bytes = max(self._peak_bytes, *(answer.usage.peak_memory_bytes for answer in answers))
        return [batch / seconds]

    def _usage(self, frames: Frames) -> Usage:
        usage = join(self._model.stream(self._request(frames))).usage
        self._peak_bytes = max(self._peak_bytes, usage.peak_memory_bytes)
        return usage

    def _request(self, frames: Frames) -> Request:
        turn = Turn("user", self._plan.prompt, (frames,))
        return Request((turn,), Generation(max_new_tokens=self._plan.new_tokens))

    def _seen(self, frames: int) -> Frames:
        """Return so many frames of the video, as the model sees them; raises `LlvidError` if it has fewer."""
        if frames not in self._frames:
            taken = read_frames(self._bench.video, Sampling(frames=frames), resize=self._model.shrink)
            if len(taken.images) < frames:
                raise LlvidError(f"the video has only {len(taken.images)}")
            self._frames[frames] = taken
        return self._frames[frames]

    def _fresh(self, frames: int) -> Frames:
        """Return frames that the model has not seen: those of the video, moved a little further each time."""
        import numpy as np

        seen = self._seen(frames)
        down, right = divmod(next(self._moves), seen.images.shape[2])
        return replace(seen, images=np.roll(seen.images, (down, right), axis=(1, 2)))

    def _begin(self, what: str, unit: str, frames: int | None = None, batch: int | None = None) -> Series:
        return self._bench.begin(what, unit, self._subject.label, frames, batch)

    def _find_limits(self) -> _Limits | None:
        """Measure what the model's device allows; None for a model behind a server."""
        if self._subject.facts is None:
            return None
        import torch

        from ..inference.speed import copy_bytes_per_second, operations_per_second

        settings, parameters = self._model.settings, self._subject.facts.parameters
        device, dtype = torch.device(settings["device"]), getattr(torch, settings["dtype"])
        self._bench.say("measuring the memory's speed")
        copied = copy_bytes_per_second(device)
        known = [series for series in self._bench.series if series.what == "copy"]
        (known[0] if known else self._bench.begin("copy", "GB/s")).runs.append(copied / 1e9)
        # the layers and the head, which is about half of what the language model has beside them
        linear = parameters.linear_bytes(settings["quantize"], dtype.itemsize)
        step_bytes = linear + dtype.itemsize * parameters.language_rest // 2
        return _Limits(copied, operations_per_second(device, dtype), step_bytes)

    def _cost(self, frames: int, batch: int = 1) -> float:
        """Return about the seconds that such a batch takes at best; in proportion only where no limits are known."""
        limits, facts = self._limits, self._subject.facts
        if limits is None or facts is None:
            return frames * batch
        parameters, rates = facts.parameters, facts.rates
        operations = 2 * parameters.language_linear * rates.frame_tokens + 2 * parameters.vision * rates.side**2
        steps = self._plan.new_tokens * limits.step_bytes / limits.copy_bytes_per_second
        return frames * batch * operations / limits.operations_per_second + steps
