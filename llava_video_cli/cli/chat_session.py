"""A chat under way: the session, what answers it, and what the commands change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..conversation import Answer, Request
from ..errors import UsageError
from ..model import Model
from ..runs.session import Session
from . import console
from . import token_budget as room
from .chat_answers import Talk
from .options import OutputFlags
from .settings import Settings, check_text
from .terminal_images import Protocol

_UNFINISHED = {
    "length": "the answer was cut off at {} tokens; /set max_new_tokens allows more",
    "repetition": "the answer began to repeat itself and was stopped; /set repetition_penalty 1.1 may help",
}


class Chat:
    """The state of a chat. `file` is where it was loaded from or saved to, `sheets` are the contact sheets written.

    `stops` is whether Ctrl-C stops an answer and no more; `pictures` is how the terminal shows them, if it does.
    """

    def __init__(
        self, session: Session, talk: Talk, settings: Settings, output: OutputFlags, *, stops: bool = False
    ) -> None:
        self.session, self.talk, self.settings, self.stops = session, talk, settings, stops
        self.file: Path | None = None
        self.sheets: set[Path] = set()
        self.pictures: Protocol | None = None
        self._output = output
        self._warned = False

    def say(self, text: str) -> None:
        """Write a line beside the answers."""
        if not self._output.quiet:
            console.note(text)

    def ask(self, question: str) -> None:
        """Ask a question and take the answer; without one, it is still the open question."""
        check_text(question, "the question")
        self.session = self.session.ask(question)
        if not self.session.paths and not self._warned:
            self.say("there is no video or picture in this conversation; /video PATH adds one")
            self._warned = True
        self._answer(self.session)

    def retry(self) -> None:
        """Ask the last question again; the answer that it has is kept until there is another one."""
        again = self.session.retry()
        if again.tries > self.session.tries and again.generation.temperature == 0:
            self.say("the same question has the same answer at temperature 0; /set temperature 0.7 draws others")
        self._answer(again)

    def _answer(self, asking: Session) -> None:
        request = self.talk.request(asking)
        model = self.talk.model()
        context_tokens = self._check_room(model, asking, request)
        pieces: list[str] = []
        try:
            answer = self.talk.answer(asking, request, pieces)
        except KeyboardInterrupt:
            if not self.stops:
                raise
            self._stopped(asking, "".join(pieces).strip())
            return
        self.session = asking.answered(answer.text)
        self._say_how(answer, request, context_tokens)

    def _check_room(self, model: Model, asking: Session, request: Request) -> int:
        """Return the tokens of the context; raises `ContextError` if the question does not fit."""
        budget = model.budget(request)
        if not budget.is_exceeded:
            return budget.context_tokens
        try:
            undone = asking.undo()
        except UsageError:  # the question itself is too long
            gives = 0
        else:
            smaller = self.talk.request_with(undone, request.media)  # what is taken back stands at the end
            gives = budget.prompt_tokens - model.budget(smaller).prompt_tokens
        raise room.refusal(budget, asking.paths, request.media, gives)

    def _stopped(self, asking: Session, text: str) -> None:
        self.talk.stop()
        if text:
            self.session = asking.answered(text)
            self.say("stopped; what came is part of the conversation: /retry asks again, /undo takes it back")
        else:
            self.say("stopped; /retry asks again")

    def _say_how(self, answer: Answer, request: Request, context_tokens: int) -> None:
        if answer.finish_reason != "stop":
            self.say(_UNFINISHED[answer.finish_reason].format(request.generation.max_new_tokens))
        if not self._output.json:
            seed = request.generation.seed
            drawn = f" · seed {seed}" if seed is not None and request.generation.temperature > 0 else ""
            self.say(room.used(answer.usage, context_tokens) + drawn)


def begun(session: Session, settings: Settings) -> Session:
    """Return a session with the settings of the command line."""
    preset = settings.preset
    generation = preset.generation.asked(settings.drawn_seed)
    return replace(session, system=preset.system, sampling=preset.sampling, generation=generation)
