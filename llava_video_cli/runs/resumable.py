"""A run over many videos or requests: it reads while the model loads, and goes on where an earlier one ended."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Protocol, cast, get_args

from ..checkpoint.adapter import adapter_key
from ..conversation import Generation, Request
from ..errors import LlvidError
from ..inference import constraints
from ..inference.loader import memory_left
from ..model import Loading, Model, Quantize
from ..preset import Preset, load_preset
from ..prompt.budget import Budget
from ..prompt.subtitles import Count, Subtitles
from ..speech.transcripts import shared
from ..video import Resize
from ..video.limits import Limits
from ..video.sampling import Sampling
from .answers import Answers, RunPace, read_ahead
from .ledger import Errors
from .prefetch import FEWEST_REQUESTS, Job, ReadAhead
from .preflight import ModelLoader, ModelSource
from .record import CutNote, Failure, Record, settings_values, versions
from .table import Table

_POLL_SECONDS = 0.1
_WHILE_LOADING = 2  # requests that are read: more would take the cores from what loads the model


@dataclass(frozen=True)
class Summary:
    """How far a run is, in videos or requests: `left` were not tried, `failed` are tried again by the next run.

    `cut` of the `done` ended at the limit of new tokens. `replaced` older records were removed:
    their videos were replaced.
    """

    done: int = 0
    done_before: int = 0
    failed: int = 0
    left: int = 0
    cut: int = 0
    replaced: int = 0


@dataclass(frozen=True)
class RunPlan:
    """What a run has to do.

    `jobs` makes `total` jobs of the records' settings, which are complete once the model is loaded, and of
    `Model.budget`. `failures` are known before anything is read. An error that is `is_fatal` ends the run. `written`
    is called with each record once it is in its file, `replacing` with each `request_key` before the older record goes.
    `largest` are requests that take at least as much of the context as any job, `first` one that ends the run if it
    doesn't fit: either may have none. `keys` are those of all records that the run makes or has made. `said` are the
    files whose speech goes into prompts, each with the sampling of its part: `Model.budget` is then called for every
    job, so that nothing is read before the model is there.
    """

    jobs: Callable[[Mapping[str, Any], Count], Iterable[Job]]
    total: int
    done_before: int = 0
    failures: Sequence[Failure] = ()
    is_fatal: Callable[[LlvidError], bool] = lambda _: False
    written: Callable[[Record], object] = lambda _: None
    replacing: Callable[[str], object] = lambda _: None
    largest: Callable[[], Iterable[Request]] = tuple
    first: Callable[[], Iterable[Request]] = tuple
    keys: Set[str] = frozenset()
    said: Sequence[tuple[str, Sampling]] = ()


@dataclass(frozen=True)
class RunOptions:
    """How a run goes: `batch_size` bounds the requests under way, `limits` are those of each video, `stop` ends it.

    `download` is called before weights are read that may have to be downloaded, `notify` with each line that a user
    should know, `loaded` with the model.
    """

    batch_size: int | None = None
    limits: Limits = field(default_factory=Limits)
    stop: Event = field(default_factory=Event)
    download: Callable[[], None] = lambda: None
    notify: Callable[[str], None] = lambda _: None
    loaded: Callable[[Model], None] = lambda _: None


def settle_run(
    preset: Preset | str | None, model: Model | ModelSource | str | None
) -> tuple[Preset, ModelSource, int | None]:
    """Return what a run is made of, with a seed where the answers are sampled and none is given; and that seed."""
    if preset is None or isinstance(preset, str):
        preset = load_preset(preset or ("demo" if model == "demo" else "default"))
    if model is None or isinstance(model, str):
        frames = preset.sampling.frames if preset.sampling.fps is None else None
        loading = Loading(
            preset.quantize, frames=frames, adapter=preset.adapter, constrained=preset.generation.is_constrained
        )
        source = ModelSource(model or preset.model, loading)
    elif isinstance(model, ModelSource):
        source = model
    else:
        source = ModelSource(model.name, Loading(), opened=model)
    quantize = source.loading.quantize if source.opened is None else source.opened.settings.get("quantize")
    quantize = quantize if quantize in get_args(Quantize) else "none"
    drawn_seed, generation = None, preset.generation
    if generation.temperature > 0 and generation.seed is None:
        drawn_seed = secrets.randbits(32)
        generation = replace(generation, seed=drawn_seed)  # here, so that the record can name it
    check_constraints([generation], source)
    preset = replace(preset, model=source.name, quantize=cast("Quantize", quantize), generation=generation)
    if source.asked is None:  # the options of the weights that are not the defaults, as on the command line
        loading = source.loading
        options = {
            "revision": source.revision,
            "dtype": None if loading.dtype == "auto" else loading.dtype,
            "rope_factor": "auto" if source.rope_auto else loading.rope_factor and f"{loading.rope_factor:g}",
            "pool_stride": loading.pool_stride,
            "pool_mode": loading.pool_mode,
            "adapter": adapter_key(loading.adapter),
        }
        source = replace(source, asked=tuple((name, value) for name, value in options.items() if value is not None))
    return preset, source, drawn_seed


def check_constraints(generations: Iterable[Generation], source: ModelSource) -> None:
    """Raise `UsageError` for a schema that can't be honoured, where the answers are made here."""
    if source.opened is None:
        distinct = {(each.schema, each.regex): each for each in generations}
        for each in distinct.values():
            constraints.check(each)


class ResumableRun:
    """Iterate over it for what comes of each video or request, in the order in which they are done.

    A record is in its file before it is yielded. Leave the loop, or set `stop`, to end the run; the same call continues
    with the rest. `close` (or a `with` block) releases the output of a run that isn't iterated to its end.
    """

    def __init__(
        self,
        plan: RunPlan,
        output: tuple[Table, Errors] | None = None,
        *,
        options: RunOptions,
        opened: ExitStack | None = None,
    ) -> None:
        self.pace, self.stop = RunPace(options.batch_size), options.stop
        self.errors_path: Path | None = output[1].path if output else None
        self._plan, self._output = plan, output
        self._options, self._opened = options, opened or ExitStack()
        self._has_begun, self._cut_note = False, CutNote()
        self._done = self._failed = self._cut = 0

    @property
    def summary(self) -> Summary:
        """The counts so far; at the end, those of the run."""
        left = self._plan.total + len(self._plan.failures) - self._done - self._failed
        replaced = self._output[0].replaced if self._output else 0
        return Summary(self._done, self._plan.done_before, self._failed, left, self._cut, replaced)

    @property
    def keys(self) -> Set[str]:
        """The keys of the records that the run makes, or an earlier one has made."""
        return self._plan.keys

    @property
    def is_pending(self) -> bool:
        """Whether the output that is to be overwritten is still the old one."""
        return self._output is not None and self._output[0].is_pending

    @property
    def needs_model(self) -> bool:
        """Whether there is something to answer."""
        return self._plan.total > 0

    def begin(self) -> None:
        """Start to read, and wait for the model. Iterating does it too; raises what makes the whole run impossible."""
        if self._has_begun:
            return
        self._has_begun = True
        if self._plan.total:
            self._load()
        if self._output is not None and not self.stop.is_set():
            table, errors = self._output
            table.begin(self._plan.keys)
            errors.begin(record for record in table.records() if record.key in self._plan.keys)

    def close(self) -> None:
        """Stop the readers and release the output."""
        self.__exit__(None, None, None)

    def __iter__(self) -> Iterator[Record | Failure]:
        with self:
            self.begin()
            for outcome in chain(self._plan.failures, self._outcomes()):
                if isinstance(outcome, Record):
                    if self._output is not None:
                        self._plan.replacing(outcome.request_key)
                        self._output[0].append(outcome)
                        self._output[1].succeeded(outcome)
                    self._plan.written(outcome)
                    for line in self._cut_note.lines(outcome.values.get("frames")):
                        self._options.notify(line)
                    self._done += 1
                    self._cut += outcome.is_cut
                else:
                    if self._plan.is_fatal(outcome.cause):
                        raise outcome.cause
                    if self._output is not None:
                        self._plan.replacing(outcome.request_key)
                        self._output[0].replace(outcome.request_key)
                        self._output[1].append(outcome)
                    self._failed += 1
                yield outcome
            if self._output is not None and not self.stop.is_set():
                self._output[0].complete()

    def __enter__(self) -> ResumableRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def _load(self) -> None:
        """Load what makes the records, unless that is done when it is needed first."""

    def _outcomes(self) -> Iterable[Record | Failure]:
        """Make the records."""
        raise NotImplementedError


class MakeRun(Protocol):
    """Makes the run of a plan, as `AnsweredRun` does."""

    def __call__(
        self,
        plan: RunPlan,
        source: ModelSource,
        preset: Preset,
        output: tuple[Table, Errors] | None = None,
        /,
        *,
        options: RunOptions,
        opened: ExitStack | None = None,
    ) -> ResumableRun:
        """Return the run; `opened` is closed with it."""


class AnsweredRun(ResumableRun):
    """A run whose records a model makes."""

    def __init__(
        self,
        plan: RunPlan,
        source: ModelSource,
        preset: Preset,
        output: tuple[Table, Errors] | None = None,
        *,
        subtitles: Subtitles | None = None,
        options: RunOptions,
        opened: ExitStack | None = None,
    ) -> None:
        super().__init__(plan, output, options=options, opened=opened)
        self._source, self._preset, self._subtitles = source, preset, subtitles
        self._settings: dict[str, Any] = {}
        self._model: Model | None = None
        self._ahead: ReadAhead | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ahead is not None:
            self._ahead.stop()
        super().__exit__(kind, error, trace)

    def _outcomes(self) -> Iterable[Record | Failure]:
        if self._ahead is None or self._model is None:
            return ()
        return Answers(self._ahead, self._model, self.stop, self.pace).outcomes()

    def _load(self) -> None:
        """Load the model, and read videos meanwhile: their size in the prompt is known from the config."""
        loader = ModelLoader(
            self._source,
            download=self._options.download,
            notify=self._options.notify,
            loaded=self._options.loaded,
            resize_first=self._subtitles is None and not self._plan.said,
        )
        if self._plan.said and self._source.opened is None:
            self._transcribe_first()
        loader.begin(self._plan.largest())
        if not loader.has_begun:
            loader.insist(self._plan.first())
        versions()  # looked up once, while there is time
        while not loader.check(_POLL_SECONDS):
            if self._ahead is None and (resize := loader.resize) is not None:
                self._ahead = self._reader(resize)
                self._ahead.most_questions = _WHILE_LOADING
            if self.stop.is_set():
                return
        self._model = loader.result()
        self._settings |= settings_values(self._model, self._preset, self._subtitles)
        self._ahead = self._ahead or self._reader(self._model.shrink)
        self._ahead.most_questions = FEWEST_REQUESTS

    def _transcribe_first(self) -> None:
        """Transcribe everything before the weights are loaded, if there is no memory for both models."""
        self._options.download()
        kind, left_bytes = memory_left(self._source.name, self._source.loading, self._source.revision)
        for model in dict.fromkeys(part.speech_model for _, part in self._plan.said):
            transcripts = shared(model)
            if not transcripts.fits_beside(kind, left_bytes):
                self._options.notify("there is not enough memory for both models: the speech is transcribed first")
                files = (each for each in self._plan.said if each[1].speech_model == model)
                transcripts.transcribe_all(files, self._options.limits, self._options.stop)

    def _reader(self, shrink: Resize) -> ReadAhead:
        return read_ahead(self._plan.jobs(self._settings, self._budget), shrink, self._options.limits)

    def _budget(self, request: Request) -> Budget:
        assert self._model is not None, "with lines to fit in, nothing is read before the model is there"
        return self._model.budget(request)
