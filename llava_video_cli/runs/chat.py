"""A chat: a conversation, its media, each read once, and the model that answers, which loads meanwhile."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterable

from ..conversation import Chunk, Media, Request
from ..errors import UsageError
from ..prompt.timestamps import with_times
from ..video import Frames
from ..video.sampling import Sampling
from .conversation_file import turns_of
from .media import MIXED, ConversationMedia
from .preflight import ModelLoader, ModelSource, most_frames, placeholders
from .session import Session


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
        progress: Callable[[str], Callable[[float], None]] = lambda _: lambda _: None,
    ) -> None:
        """Check the media, then begin to load the model if the open question surely fits its context.

        `timestamps` tells the model the times of the frames. `download` and `notify` are as in `ModelLoader`.
        `progress` is called with the path of a file and returns what gets the share of it that is read. Raises
        `MediaError` for a file that is no video or picture, `ModelError` or `UsageError` for a model that can't be
        loaded.
        """
        self.session = session
        self._timestamps, self._notify, self._progress = timestamps, notify, progress
        self._cache, self._has_noted_mixing = ConversationMedia(), False
        for path in session.paths:
            self._cache.picture(path)
        self.loader = ModelLoader(source, download=download, notify=notify)
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
        return self._request(session, media)

    def expected_request(self, frames_of: Callable[[str, Sampling], Frames] = most_frames) -> Request:
        """Return the open question with placeholders for the videos, which needn't be read for it."""
        session = self.session
        pictures = [self._cache.picture(path) for path in session.paths]
        return self._request(session, placeholders(session.paths, pictures, session.sampling, frames_of))

    def media(self, session: Session) -> list[Media]:
        """Return all media of a session, in their order. Raises `MediaError`."""
        self._cache.keep(session.paths, session.sampling)
        media = []
        for path in session.paths:
            is_new = not self._cache.holds(path, session.sampling)
            media.append(medium := self._cache.read(path, session.sampling, self._progress(path)))
            for line in medium.notes if is_new else ():
                self._notify(f"{path}: {line}")
        return media

    def last_step_tokens(self, session: Session, request: Request) -> int:
        """Return how many tokens `Session.undo` would take off a session's request; 0 if there is nothing to undo."""
        try:
            undone = session.undo()
        except UsageError:
            return 0
        model = self.loader.result()
        smaller = self._request(undone, request.media)  # what is taken back stands at the end
        return model.budget(request).prompt_tokens - model.budget(smaller).prompt_tokens

    def _request(self, session: Session, media: Iterable[Media]) -> Request:
        turns = turns_of(session.drafts, media)
        return Request(with_times(turns) if self._timestamps else turns, session.drawn(secrets.randbits(32)))
