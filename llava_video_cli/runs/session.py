"""A chat: a conversation, of which every step makes the next one, its media and the model that answers."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, get_args

from ..conversation import Chunk, Generation, Media, Request, first_out_of_order
from ..errors import UsageError, nearest
from ..model import Model
from ..preset import SAMPLING_OPTIONS, generation_shape, sampling_options, sampling_shape, with_sampling
from ..prompt.subtitles import fitting, notes_of, with_speech
from ..prompt.timestamps import request_of
from ..speech.transcripts import check_speech, hear
from ..validation import brief
from ..validation import fitting as fitting_value
from ..video import Frames, check_scenes, read_frames
from ..video.image import Picture
from ..video.sampling import Sampling
from .conversation_file import Draft, turns_of
from .media import MIXED, check_media, noted, seen_by
from .preflight import ModelLoader, ModelSource, most_frames, placeholders
from .record import CutNote, media_values

_TEXTS = ("choices", "prefill")  # that `none` gives up
_SWITCH = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}
_SAMPLING, _GENERATION = Sampling(), Generation()
_KEPT = ("system", "sampling", "generation", "timestamps")  # by `clear`
_CONSTRAINTS = ("schema", "regex")  # which stay as the chat began
_GENERATION_NAMES = tuple(field.name for field in fields(Generation) if field.name not in _CONSTRAINTS)
SETTINGS = (*_GENERATION_NAMES, *SAMPLING_OPTIONS, "timestamps")


@dataclass(frozen=True)
class Exchange:
    """A question with the media that stand before it, and its answer."""

    question: str
    answer: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Session:
    """A conversation of answered questions, and what comes next.

    `waiting` are media that stand before the next question. `question` has been asked and has no answer yet: a long
    one may not fit, or its answer was stopped. `tries` counts the answers to it that were thrown away. All media are
    read with the same `sampling`. With `timestamps`, the model is told the times of their frames.
    """

    system: str | None = None
    exchanges: tuple[Exchange, ...] = ()
    waiting: tuple[str, ...] = ()
    question: str | None = None
    sampling: Sampling = _SAMPLING
    generation: Generation = _GENERATION
    tries: int = 0
    timestamps: bool = False

    @classmethod
    def of(cls, drafts: Sequence[Draft], sampling: Sampling, generation: Generation) -> Session:
        """Return a conversation that was written down; a last turn of the user's is the question that is open.

        Raises UsageError unless a system text (if any) comes first, and user and assistant take turns.
        """
        if wrong := first_out_of_order([draft.role for draft in drafts]):
            index, role = wrong
            raise UsageError(f"message {index + 1} must be from the {role}, got one from the {drafts[index].role}")
        system = drafts[0].text if drafts and drafts[0].role == "system" else None
        turns = drafts[1:] if system is not None else drafts
        pairs = zip(turns[::2], turns[1::2], strict=False)
        exchanges = tuple(Exchange(asked.text, answer.text, asked.paths) for asked, answer in pairs)
        last = turns[-1] if len(turns) % 2 else Draft("user", "")
        return cls(system or None, exchanges, last.paths, last.text or None, sampling, generation)

    @property
    def drafts(self) -> tuple[Draft, ...]:
        """All turns, the last one with the media that wait and the question that is open, if there are any."""
        system = [Draft("system", self.system)] if self.system else []
        turns = [
            draft
            for each in self.exchanges
            for draft in (Draft("user", each.question, each.paths), Draft("assistant", each.answer))
        ]
        last = [Draft("user", self.question or "", self.waiting)] if self.question or self.waiting else []
        return (*system, *turns, *last)

    @property
    def paths(self) -> tuple[str, ...]:
        """All media, in the order of the prompt."""
        return tuple(path for draft in self.drafts for path in draft.paths)

    def add(self, path: str) -> Session:
        """Put a video or picture before the next question, behind those that wait already."""
        return replace(self, waiting=(*self.waiting, path))

    def ask(self, question: str) -> Session:
        """Ask a question, in the place of one that is still open."""
        return replace(self, question=question, tries=0)

    def answered(self, answer: str) -> Session:
        """Take the answer to the open question."""
        assert self.question is not None, "nothing was asked"
        last = Exchange(self.question, answer, self.waiting)
        return replace(self, exchanges=(*self.exchanges, last), waiting=(), question=None)

    def retry(self) -> Session:
        """Ask the open question again, or else the last one, whose answer is thrown away.

        Raises UsageError if nothing was asked.
        """
        if self.question is not None:
            return self
        if not self.exchanges:
            raise UsageError("there is no question to ask again")
        back = self._without_last()
        return replace(back, question=self.exchanges[-1].question, tries=self.tries + 1)

    def undo(self) -> Session:
        """Take back the last step: the medium that was added last, or else the last question and its answer.

        The media of that question wait for the next one then. Raises UsageError if there is nothing.
        """
        if self.waiting:
            return replace(self, waiting=self.waiting[:-1])
        if not self.exchanges:
            raise UsageError("there is nothing to undo")
        return self._without_last()

    def clear(self) -> Session:
        """Forget questions, answers and media; the system text and the settings stay."""
        return replace(Session(), **{name: getattr(self, name) for name in _KEPT})

    def set(self, name: str, value: str) -> Session:
        """Change a setting of `SETTINGS` to a value as it is typed; `none` removes an optional value.

        Raises UsageError for an unknown name, and for a value that it can't have.
        """
        if name not in SETTINGS:
            raise UsageError(
                f"there is no setting {brief(name)}",
                nearest(name, SETTINGS) or f"the settings are {', '.join(SETTINGS)}",
            )
        if name == "timestamps":
            return replace(self, timestamps=_typed(value, bool, name))
        if name in SAMPLING_OPTIONS:
            sampling = with_sampling(self.sampling, {name: _typed(value, sampling_shape()[name], name)})
            check_scenes(sampling)
            check_speech(sampling)
            return replace(self, sampling=sampling)
        typed: Any = "" if name in _TEXTS and value == "none" else _typed(value, generation_shape()[name], name)
        return replace(self, generation=replace(self.generation, **{name: typed}))

    def settings(self) -> dict[str, Any]:
        """Return the settings' values by their names; `fps` stands in place of `frames` where it is in use."""
        values = {name: getattr(self.generation, name) for name in _GENERATION_NAMES}
        values["choices"] = ", ".join(self.generation.choices)
        values |= {name: values[name] or None for name in _TEXTS}
        values |= sampling_options(self.sampling) | {"timestamps": self.timestamps}
        del values["frames" if self.sampling.fps else "fps"]
        return values

    def drawn(self, seed: int) -> Generation:
        """Return how the answer is sampled now: with `seed` where none is set, and with another one at each try."""
        given = self.generation.seed
        if self.generation.temperature == 0:
            return self.generation
        return replace(self.generation, seed=seed if given is None else (given + self.tries) % 2**63)

    def _without_last(self) -> Session:
        *before, last = self.exchanges
        return replace(self, exchanges=tuple(before), waiting=(*last.paths, *self.waiting))


class Chat:
    """A conversation with a model: `session` is its state, a value that each answer replaces.

    `loader` loads the model in the background. A chat is used by one thread at a time.
    """

    def __init__(
        self,
        session: Session,
        source: ModelSource,
        *,
        timestamps: bool = False,
        download: Callable[[], None] = lambda: None,
        notify: Callable[[str], None] = lambda _: None,
        loaded: Callable[[Model], None] = lambda _: None,
        progress: Callable[[str], Callable[[float], None]] = lambda _: lambda _: None,
    ) -> None:
        """Check the media, then begin to load the model if the open question surely fits its context.

        `timestamps` tells the model the times of the frames. `download`, `notify` and `loaded` are as in `ModelLoader`.
        `progress` is called with the path of a file and returns what gets the share of it that is read. Raises
        `MediaError` for a file that is no video or picture, `ModelError` or `UsageError` for a model that can't be
        loaded.
        """
        self.session = session = replace(session, timestamps=timestamps or session.timestamps)
        self._notify, self._progress = notify, progress
        self._pictures: dict[str, Picture | None] = {}
        self._contents: dict[tuple[str, Sampling], Media] = {}
        self._has_noted_mixing, self._cut_note = False, CutNote()
        for path in session.paths:
            self._picture(path)
        self.loader = ModelLoader(source, download=download, notify=notify, loaded=loaded)
        self.loader.begin([self.expected_request()])

    def ask(self, question: str) -> Generator[Chunk, None, None]:
        """Read the media and yield the answer as it is generated. A question that gets no answer stays open.

        Raises `MediaError`, and what `Model.stream` raises.
        """
        self.session = self.session.ask(question)
        return self.answer(self.session, self.request(self.session))

    def answer(self, session: Session, request: Request) -> Generator[Chunk, None, None]:
        """Yield the answer to a session's open question; in the end the session has it, and is that of the chat.

        Of an answer that is stopped, the session has the part that was generated, if any. Raises what `Model.stream`
        raises.
        """
        texts: list[str] = []
        try:
            for chunk in self.loader.result().stream(request):
                texts.append(chunk.text)
                yield chunk
        except (GeneratorExit, KeyboardInterrupt):
            if text := "".join(texts).strip():
                self.session = session.answered(text)
            raise
        self.session = session.answered("".join(texts))

    def request(self, session: Session) -> Request:
        """Return a session's open question as the model takes it, with a random seed where none is set.

        Raises `MediaError`.
        """
        media = self.media(session)
        if len(media) > 1 and not self._has_noted_mixing:
            self._has_noted_mixing = True
            self._notify(MIXED)
        if not any(isinstance(medium, Frames) and medium.speech for medium in media):
            return self._request(session, media)
        drawn = session.drawn(secrets.randbits(32))
        (request,), lines = fitting(
            media,
            lambda spoken: [replace(self._request(session, media, spoken), generation=drawn)],
            self.loader.result().budget,
        )
        for line in notes_of([lines]):
            self._notify(line)
        return request

    def expected_request(self, frames_of: Callable[[str, Sampling], Frames] = most_frames) -> Request:
        """Return the open question with placeholders for the videos, which needn't be read for it."""
        session = self.session
        pictures = [self._picture(path) for path in session.paths]
        return self._request(session, placeholders(session.paths, pictures, session.sampling, frames_of))

    def media(self, session: Session) -> list[Media]:
        """Return all media of a session, in their order. What it doesn't hold is forgotten. Raises `MediaError`."""
        keys = [(path, session.sampling) for path in session.paths]
        self._pictures = {path: picture for path, picture in self._pictures.items() if path in session.paths}
        self._contents = {key: medium for key, medium in self._contents.items() if key in keys}
        for path, sampling in keys:
            if (path, sampling) not in self._contents:
                show = self._progress(path)
                picture = self._picture(path)
                medium = noted(picture, sampling) if picture else hear(read_frames(path, sampling, progress=show))
                (medium,) = seen_by([medium], self.loader.frame_input)
                self._contents[path, sampling] = medium
                for line in (*medium.notes, *self._cut_note.lines(media_values(path, medium)["frames"])):
                    self._notify(f"{path}: {line}")
        return [self._contents[key] for key in keys]

    def last_step_tokens(self, session: Session, request: Request) -> int:
        """Return how many tokens `Session.undo` would take off a session's request; 0 if there is nothing to undo."""
        try:
            undone = session.undo()
        except UsageError:
            return 0
        model = self.loader.result()
        smaller = self._request(undone, request.media)  # what is taken back stands at the end
        return model.budget(request).prompt_tokens - model.budget(smaller).prompt_tokens

    def _picture(self, path: str) -> Picture | None:
        """Return a picture, or None for a video. Raises `MediaError` for a file that is neither."""
        if path not in self._pictures:
            (self._pictures[path],) = check_media([path])
        return self._pictures[path]

    def _request(self, session: Session, media: Iterable[Media], spoken: int = 0) -> Request:
        turns = with_speech(turns_of(session.drafts, media), spoken)
        return request_of(turns, session.drawn(secrets.randbits(32)), session.timestamps)


def _typed(value: str, allowed: Any, name: str) -> Any:
    """Return a value that was typed, as the type that a setting has; raises UsageError."""
    kinds = {allowed, *get_args(allowed)}
    if value == "none" and NoneType in kinds:
        return None
    if bool in kinds:
        return fitting_value(_SWITCH.get(value.lower(), value), allowed, name)
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(value)
    return fitting_value(value, allowed, name)
