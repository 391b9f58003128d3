"""How fast this machine reads videos and runs a model, measured with alternating runs.

A model is measured through the two methods that every model has, so a server's model is measured the same way.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count, product
from typing import Any

from ..checkpoint.config import Checkpoint
from ..conversation import Generation, Request, Turn, Usage, join
from ..errors import ContextError, LlvidError, OutOfMemoryError
from ..inference.cards import Card, accelerators
from ..model import Model
from ..runs.record import versions
from ..system.machine import memory, processor
from ..video import Frames, read_frames
from ..video.sampling import Sampling

_GOLDEN = 0.6180339887498949  # its multiples modulo 1 are never close to each other
# A measurement is inaccurate if other programs use more than so many cores, and more than this share of all cores.
_BUSY_CORES, _BUSY_SHARE = 0.5, 0.25


@dataclass(frozen=True)
class BenchPlan:
    """What is measured: `runs` of each cell after one to warm up, in `seconds` for each precision of the model."""

    frames: tuple[int, ...] = (8, 16, 32)
    batches: tuple[int, ...] = (1, 8, 32)
    runs: int = 3
    seconds: float = 60.0
    new_tokens: int = 32
    prompt: str = "Describe this video."


@dataclass(frozen=True)
class BenchModel:
    """A model to measure: how it is opened in one precision, which `label` names, and its facts.

    `weight_bytes` is what loading reads, or makes if the weights are random. A server's model has no facts, so neither
    its loading nor its share of the bandwidth limit is measured.
    """

    label: str
    open: Callable[[], Model]
    facts: Checkpoint | None = None
    weight_bytes: int = 0
    is_random: bool = False


@dataclass
class Measurement:
    """A cell of the table: what was measured in which unit, for how many frames and videos, and the value of each run.

    `precision` is that of the weights. It is None for what does not depend on the model, and so are `frames` and
    `batch`. `note` gives the reason if there are no runs, or only a first one.
    """

    what: str
    unit: str
    precision: str | None = None
    frames: int | None = None
    batch: int | None = None
    runs: list[float] = field(default_factory=list)
    note: str | None = None

    @property
    def median(self) -> float | None:
        """The median of the runs; None without any."""
        return statistics.median(self.runs) if self.runs else None


@dataclass(frozen=True, eq=False)
class TimedTask:
    """A call that returns a value for each of its measurements, or None where there is none.

    `cost` is its expected time, in proportion to that of other tasks.
    """

    measurements: tuple[Measurement, ...]
    run: Callable[[], Sequence[float | None]]
    cost: float

    @property
    def name(self) -> str:
        """What is measured, for the display."""
        first = self.measurements[0]
        frames = f", {first.frames} frames" if first.frames else ""
        return first.what + frames + (f", batch {first.batch}" if first.batch else "")

    def add(self, values: Sequence[float | None]) -> None:
        """Add the values of a run."""
        for measurement, value in zip(self.measurements, values, strict=True):
            measurement.runs += [] if value is None else [value]

    def set_note(self, note: str) -> None:
        """Set the note of each measurement."""
        for measurement in self.measurements:
            measurement.note = note


@dataclass(frozen=True)
class MachineInfo:
    """The machine of a measurement. `cores` are those that this process may use, `load` that of the last minute."""

    cpu: str
    cores: int
    memory_bytes: int | None
    gpus: tuple[Card, ...]
    system: str
    load: float | None
    versions: dict[str, str]

    @property
    def is_busy(self) -> bool:
        """Whether other programs use so much of it that a measurement would be inaccurate."""
        return self.load is not None and self.load > max(_BUSY_CORES, _BUSY_SHARE * self.cores)


def machine_info() -> MachineInfo:
    """Return what this machine is; what can't be determined is empty."""
    cpu, memory_bytes = processor(), None
    cards: tuple[Card, ...] = ()
    with suppress(OSError):
        memory_bytes = memory().total_bytes
    with suppress(OSError):
        cards = accelerators().cards
    return MachineInfo(
        cpu=cpu.name,
        cores=cpu.cores,
        memory_bytes=memory_bytes,
        gpus=cards,
        system=f"{platform.system()} {platform.machine()}",
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        versions=versions(),
    )


@dataclass
class Bench:
    """The measurements of one video and any number of models. They can be read at any time, even after Ctrl-C."""

    video: str
    plan: BenchPlan = field(default_factory=BenchPlan)
    say: Callable[[str], None] = lambda _: None
    settings: list[dict[str, Any]] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def cells(self) -> list[Measurement]:
        """All measurements that have a value or a note, in the order in which they were begun."""
        return [measurement for measurement in self.measurements if measurement.runs or measurement.note]

    @property
    def values(self) -> dict[str, Any]:
        """The JSON values of the plan and of all measurements so far."""
        cells = [asdict(cell) | {"median": cell.median} for cell in self.cells]
        return {"plan": asdict(self.plan), "settings": self.settings, "cells": cells}

    def begin(self, *fields: Any) -> Measurement:
        """Add a measurement with these fields."""
        self.measurements.append(Measurement(*fields))
        return self.measurements[-1]

    def reading(self) -> None:
        """Measure how many sampled frames are read in a second."""
        tasks = [
            TimedTask((self.begin("read", "frames/s", None, frames),), partial(self._read, frames), frames)
            for frames in self.plan.frames
        ]
        measure_alternating(tasks, self.plan.runs, self.plan.seconds / 4, self.say)

    def model(self, subject: BenchModel) -> None:
        """Measure a model in one precision; what can't be measured gets a note instead of runs."""
        verb = "make weights" if subject.is_random else "load"
        load, rate = self.begin(verb, "s", subject.label), self.begin(f"{verb}, speed", "GB/s", subject.label)
        self.say(f"loading, {subject.label}")
        if subject.facts is not None:
            from ..inference.families import llava_next_video as llava  # noqa: F401 - the import of torch is not a part of loading
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
            _ModelBench(self, subject, model).measure()
        finally:
            device = model.settings.get("device")
            del model
            gc.collect()  # a model refers to itself; the next one needs its memory
            if device and subject.facts is not None:
                import torch

                from ..inference.device_memory import give_back

                give_back(torch.device(device))

    def _read(self, frames: int) -> Sequence[float | None]:
        began = time.perf_counter()
        images = read_frames(self.video, Sampling(frames=frames)).images
        return [len(images) / (time.perf_counter() - began)]


@dataclass(frozen=True)
class _DeviceSpeed:
    """The limits that a device sets to the speed of a model, of which `step_bytes` are read for each new token."""

    copy_bytes_per_second: float
    operations_per_second: float
    step_bytes: int


class _ModelBench:
    """The measurements of a loaded model."""

    def __init__(self, bench: Bench, subject: BenchModel, model: Model) -> None:
        self._bench, self._plan, self._subject, self._model = bench, bench.plan, subject, model
        self._speed = self._device_speed()
        self._frames: dict[int, Frames] = {}
        self._shifts = count(1)
        self._peak_bytes = 0

    def measure(self) -> None:
        """Measure everything that the plan names."""
        plan, tasks = self._plan, []
        first = {frames: self._begin("first token", "s", frames) for frames in plan.frames}
        from_file = {frames: self._begin("first token, from file", "s", frames) for frames in plan.frames}
        tokens = {frames: self._begin("tokens", "tokens/s", frames) for frames in plan.frames}
        shares = {frames: self._begin("of the bandwidth limit", "", frames) for frames in plan.frames}
        for frames in plan.frames:
            cost = self._cost(frames)
            tasks.append(TimedTask((first[frames], tokens[frames]), partial(self._stream, frames), cost))
            tasks.append(TimedTask((from_file[frames],), partial(self._stream_from_file, frames), cost))
        for batch, frames in product(plan.batches, plan.frames):
            videos = self._begin("videos", "videos/s", frames, batch)
            tasks.append(TimedTask((videos,), partial(self._batch, frames, batch), self._cost(frames, batch)))
        peak = self._begin("peak memory", "GB")
        try:
            measure_alternating(tasks, plan.runs, plan.seconds, self._bench.say, None if self._speed is None else 1.0)
        finally:
            if self._speed is not None:
                limit = self._speed.copy_bytes_per_second / self._speed.step_bytes
                for frames, measurement in tokens.items():
                    shares[frames].runs += [value / limit for value in measurement.runs]
            if self._peak_bytes:
                peak.runs.append(self._peak_bytes / 1e9)

    def _stream(self, frames: int) -> Sequence[float | None]:
        usage = self._usage(self._new_frames(frames))
        later = usage.generated_tokens - 1
        seconds = usage.total_seconds - usage.first_token_seconds
        return [usage.first_token_seconds, later / seconds if later and seconds > 0 else None]

    def _stream_from_file(self, frames: int) -> Sequence[float | None]:
        # each run starts at another moment of the first half, so that no cache has these frames
        start = self._video_frames(frames).info.duration_seconds / 2 * (next(self._shifts) * _GOLDEN % 1)
        sampling = Sampling(frames=frames, start_seconds=start)
        began = time.perf_counter()
        shown = read_frames(self._bench.video, sampling, resize=self._model.shrink)
        read_seconds = time.perf_counter() - began
        return [read_seconds + self._usage(shown).first_token_seconds]

    def _batch(self, frames: int, batch: int) -> Sequence[float | None]:
        requests = [self._request(self._new_frames(frames)) for _ in range(batch)]
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
        return Request((Turn("user", self._plan.prompt, (frames,)),), Generation(max_new_tokens=self._plan.new_tokens))

    def _video_frames(self, frames: int) -> Frames:
        """Return so many frames of the video at the model's size; raises `LlvidError` if it has fewer."""
        if frames not in self._frames:
            shown = read_frames(self._bench.video, Sampling(frames=frames), resize=self._model.shrink)
            if len(shown.images) < frames:
                raise LlvidError(f"the video has only {len(shown.images)} frames")
            self._frames[frames] = shown
        return self._frames[frames]

    def _new_frames(self, frames: int) -> Frames:
        """Return frames that no cache of the model has: those of the video, shifted a little further in each run."""
        import numpy as np

        shown = self._video_frames(frames)
        down, right = divmod(next(self._shifts), shown.images.shape[2])
        return replace(shown, images=np.roll(shown.images, (down, right), axis=(1, 2)))

    def _begin(self, what: str, unit: str, frames: int | None = None, batch: int | None = None) -> Measurement:
        return self._bench.begin(what, unit, self._subject.label, frames, batch)

    def _device_speed(self) -> _DeviceSpeed | None:
        """Measure the speed of the model's device; None for a model behind a server."""
        if self._subject.facts is None:
            return None
        import torch

        from ..inference.speed import copy_bytes_per_second, operations_per_second

        settings, parameters = self._model.settings, self._subject.facts.parameters
        device, dtype = torch.device(settings["device"]), getattr(torch, settings["dtype"])
        self._bench.say("measuring the memory's speed")
        copied = copy_bytes_per_second(device)
        earlier = [measurement for measurement in self._bench.measurements if measurement.what == "copy"]
        (earlier[0] if earlier else self._bench.begin("copy", "GB/s")).runs.append(copied / 1e9)
        # the layers and the head; the head is about half of the language model's other parameters
        linear = parameters.linear_bytes(settings["quantize"], dtype.itemsize)
        step_bytes = linear + dtype.itemsize * parameters.language_rest // 2
        return _DeviceSpeed(copied, operations_per_second(device, dtype), step_bytes)

    def _cost(self, frames: int, batch: int = 1) -> float:
        """Return the least seconds that such a batch takes, or a number in proportion to them for a server's model."""
        speed, facts = self._speed, self._subject.facts
        if speed is None or facts is None:
            return frames * batch
        parameters, rates = facts.parameters, facts.rates
        operations = 2 * parameters.language_linear * rates.frame_tokens + 2 * parameters.vision * rates.side**2
        steps = self._plan.new_tokens * speed.step_bytes / speed.copy_bytes_per_second
        return frames * batch * operations / speed.operations_per_second + steps


def measure_alternating(
    tasks: Sequence[TimedTask], runs: int, seconds: float, say: Callable[[str], None], scale: float | None = None
) -> None:
    """Run each task once to warm up, then alternate between them until each has its runs or the time is over.

    A task that would take longer than the remaining time is left out, with a note. If the time allows a task one run
    only, that first run counts. `scale` is the seconds of a task of cost 1, if they are known beforehand.
    """
    deadline = time.perf_counter() + seconds
    durations: dict[TimedTask, float] = {}
    first_values: dict[TimedTask, Sequence[float | None]] = {}
    for task in sorted(tasks, key=lambda task: task.cost):
        expected = 0.0 if scale is None else scale * task.cost
        if expected > deadline - time.perf_counter():
            task.set_note("takes too long: " + (f"{expected:.0f} s" if expected < 120 else f"{expected / 60:.0f} min"))
            continue
        say(f"{task.name}, warming up")
        began = time.perf_counter()
        if (values := _values(task)) is not None:
            first_values[task], durations[task] = values, time.perf_counter() - began
            scale = durations[task] / task.cost
    alternating = list(durations)
    while alternating and sum(durations[task] for task in alternating) > deadline - time.perf_counter():
        task = max(alternating, key=lambda task: durations[task])
        alternating.remove(task)
        task.add(first_values[task])
        task.set_note("one run without a warm-up, for lack of time")
    for number in range(runs):
        if number and sum(durations[task] for task in alternating) > deadline - time.perf_counter():
            break
        for task in tuple(alternating):
            say(f"{task.name}, run {number + 1} of {runs}")
            if (values := _values(task)) is None:
                alternating.remove(task)
            else:
                task.add(values)


def _values(task: TimedTask) -> Sequence[float | None] | None:
    """Run a task; return None if it fails, with the reason as its note."""
    try:
        return task.run()
    except ContextError:
        task.set_note("doesn't fit the context")
    except OutOfMemoryError:
        task.set_note("out of memory")
    except LlvidError as error:
        task.set_note(str(error))
    return None
