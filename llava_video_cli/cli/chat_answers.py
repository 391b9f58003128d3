"""What answers a session: its media, read once, and the model, loaded meanwhile."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace

from ..conversation import Answer, Media, Request
from ..model import Model
from ..prompt.timestamps import with_times
from ..runs.conversation_file import turns_of
from ..runs.preflight import most_frames, placeholders
from ..runs.record import ask_values, media_values, settings_values
from ..runs.session import Session
from ..video import Frames, announced_frames
from ..video.sampling import Sampling
from . import console
from . import token_budget as room
from .ask import collect
from .download import model_loader
from .media import MIXED, Shelf
from .options import OutputFlags
from .settings import Settings


class Talk:
    """Reads, loads and answers, and shows what a user should know about it, each thing once."""

    def __init__(self, session: Session, settings: Settings, output: OutputFlags, progress: console.Progress) -> None:
        """Begin to load the model, after a look at the media; raises `MediaError`.

        Where the open question may not fit the context, that waits for `insist` or for `hurry`.
        """
        self._shelf = Shelf()
        for path in session.paths:
            self._shelf.check(path)
        self._settings, self._output, self._progress = settings, output, progress
        for line in settings.notes if not output.quiet else ():
            console.note(line)
        self._opening = model_loader(settings, output, progress)
        self._opening.begin([self.request_with(session, self._stand_ins(session, most_frames))])
        self._mixed = False

    def check_model(self, wait_seconds: float = 0.0) -> None:
        """Raise what went wrong with the model, if it has within that time."""
        self._opening.check(wait_seconds)

    def stop(self) -> None:
        """Take away what is shown of something that goes on."""
        self._progress.stop()

    def insist(self, session: Session) -> None:
        """Load the model unless it loads already; raises `ContextError` if the open question doesn't fit."""
        if not self._opening.has_begun:
            self._opening.insist([self.request_with(session, self._stand_ins(session, announced_frames))])

    def hurry(self, session: Session) -> None:
        """Load the model whatever fits: a command may still make room. Says which if there is none."""
        if self._opening.has_begun:
            return
        media = self._stand_ins(session, announced_frames)
        budget = self._opening.counter.budget(self.request_with(session, media))
        if budget.left < 0 and not self._output.quiet:
            ways = room.ways(budget, media)
            full = str(room.refusal(budget, session.paths, media, 0))
            console.note(f"{full}: {' or '.join(ways)}" if ways else full)
        self._opening.insist()

    def _stand_ins(self, session: Session, of: Callable[[str, Sampling], Frames]) -> list[Media]:
        pictures = [self._shelf.picture(path) for path in session.paths]
        return placeholders(session.paths, pictures, session.sampling, of)

    def model(self) -> Model:
        """Wait for the model."""
        self._progress.say(self._settings.opening)
        return self._opening.result()

    def contents(self, session: Session) -> list[Media]:
        """Return all media of a session, in their order."""
        self._shelf.keep(session.paths, session.sampling)
        found = []
        for path in session.paths:
            known = self._shelf.holds(path, session.sampling)
            show = self._progress.watch(f"reading {path}")
            found.append(medium := self._shelf.read(path, session.sampling, show))
            if not (known or self._output.quiet):
                for line in medium.notes:
                    console.note(f"{path}: {line}")
        self._progress.stop()
        return found

    def request(self, session: Session) -> Request:
        """Return the open question as the model takes it, with a seed if its answer is drawn."""
        contents = self.contents(session)
        if len(contents) > 1 and not self._mixed and not self._output.quiet:
            console.note(MIXED)
            self._mixed = True
        return self.request_with(session, contents)

    def request_with(self, session: Session, contents: Iterable[Media]) -> Request:
        """Return the same of media that were read before."""
        turns = turns_of(session.drafts, contents)
        told = with_times(turns) if self._settings.preset.timestamps else turns
        return Request(told, session.drawn(secrets.randbits(32)))

    def answer(self, session: Session, request: Request, pieces: list[str] | None = None) -> Answer:
        """Show the answer as it comes, and return it; what came stands in `pieces`, whatever happens."""
        model = self.model()
        self._progress.say("thinking")
        answer = collect(model.stream(request), self._progress, self._output.json, pieces)
        self._progress.stop()
        if self._output.json:
            preset = replace(
                self._settings.preset,
                system=session.system,
                sampling=session.sampling,
                generation=request.generation,
            )
            media = [media_values(path, medium) for path, medium in zip(session.paths, request.media, strict=True)]
            values = settings_values(model, preset)
            console.write_json(ask_values(media, session.question or "", answer, values))
        return answer
