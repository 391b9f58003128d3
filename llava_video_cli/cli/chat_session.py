"""A chat on the terminal: its answers are shown as they are generated, with the tokens that they used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from ..conversation import Answer, Media, Request, Usage
from ..errors import ContextError
from ..prompt.budget import AS_ONE_VIDEO, Budget
from ..runs.record import ask_values, media_values, settings_values
from ..runs.session import Chat, Session
from ..video import announced_frames
from . import console, decisions
from .answer import note_unfinished, show_answer
from .download import prefetch
from .options import OutputFlags
from .settings import Settings, check_text

Protocol = Literal["kitty", "iterm"]  # for pictures in a terminal

_FEWEST_TOKENS = 16  # an answer of fewer is not worth a hint
_MOST_NAMED = 4  # media, the largest first


class TerminalChat(Chat):
    """A chat that shows its answers. `file` is where it was loaded from or saved to, `sheets` are those it wrote.

    With `stops`, Ctrl-C stops only an answer; `pictures` is the terminal's protocol for pictures, if it has one.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        output: OutputFlags,
        spinner: console.Progress,
        *,
        stops: bool = False,
    ) -> None:
        self.settings, self.stops, self.say = settings, stops, output.note
        self.file: Path | None = None
        self.sheets: set[Path] = set()
        self.pictures: Protocol | None = None
        self.spinner, self._output = spinner, output
        self._has_warned = False
        super().__init__(
            session,
            settings.source,
            download=partial(prefetch, settings, spinner, quiet=output.quiet),
            notify=output.note,
            loaded=lambda model: output.detail(*decisions.loaded(model, settings)),
            progress=lambda path: spinner.watch(f"reading {path}"),
        )
        output.note(*settings.notes)

    def insist(self) -> None:
        """Start to load the model, once; raises `ContextError` if the open question doesn't fit."""
        if not self.loader.has_begun:
            self.loader.insist([self.expected_request(announced_frames)])

    def load_anyway(self) -> None:
        """Start to load the model even if the open question doesn't fit, and say so: a command may make it fit."""
        if self.loader.has_begun:
            return
        request = self.expected_request(announced_frames)
        counter = self.loader.counter
        budget = None if counter is None else counter.budget(request)
        if budget is not None and budget.left < 0:
            ways = _ways(budget, request.media)
            full = str(no_fit(budget, self.session.paths, request.media, 0))
            self.say(f"{full}: {' or '.join(ways)}" if ways else full)
        self.loader.insist()

    def media(self, session: Session) -> list[Media]:
        """Return all media of a session, in their order; what is read is shown."""
        media = super().media(session)
        self.spinner.stop()
        return media

    def put(self, question: str) -> None:
        """Ask a question and show the answer; without one, the question stays open."""
        check_text(question, "the question")
        self.session = self.session.ask(question)
        if not self.session.paths and not self._has_warned:
            self.say("there is no video or picture in this conversation; /video PATH adds one")
            self._has_warned = True
        self._answer(self.session)

    def retry(self) -> None:
        """Ask the last question again; its answer is kept until there is another one."""
        again = self.session.retry()
        if again.tries > self.session.tries and again.generation.temperature == 0:
            self.say("at temperature 0 the answer stays the same; /set temperature 0.7 gives other answers")
        self._answer(again)

    def show(self, session: Session, request: Request) -> Answer:
        """Show the answer to a session's open question as it comes, and return it."""
        self.spinner.say(self.settings.opening)
        model = self.loader.result()
        self.spinner.say("thinking")
        answer = show_answer(self.answer(session, request), self.spinner, silent=self._output.json)
        self.spinner.stop()
        if self._output.json:
            preset = replace(
                self.settings.preset, system=session.system, sampling=session.sampling, generation=request.generation
            )
            media = [media_values(path, medium) for path, medium in zip(session.paths, request.media, strict=True)]
            console.write_json(ask_values(media, session.question or "", answer, settings_values(model, preset)))
        return answer

    def _answer(self, session: Session) -> None:
        request = self.request(session)
        self.spinner.say(self.settings.opening)
        budget = self.loader.result().budget(request)
        if budget.is_exceeded:
            raise no_fit(budget, session.paths, request.media, self.last_step_tokens(session, request))
        before = self.session
        try:
            answer = self.show(session, request)
        except KeyboardInterrupt:
            if not self.stops:
                raise
            self.spinner.stop()
            if self.session is before:
                self.say("stopped; /retry asks again")
            else:
                self.say("stopped; the part that was generated is kept: /retry asks again, /undo removes it")
            return
        ways = ("/set max_new_tokens", "/set repetition_penalty")
        note_unfinished(answer, request.generation.max_new_tokens, self.say, ways)
        if not self._output.json:
            seed = request.generation.seed
            with_seed = f" · seed {seed}" if seed is not None and request.generation.temperature > 0 else ""
            self.say(_used(answer.usage, budget.context_tokens) + with_seed)


def _used(usage: Usage, context_tokens: int) -> str:
    """Return the line after an answer; a context of 0 tokens is unknown."""
    total = usage.prompt_tokens + usage.generated_tokens
    reused = f", {usage.cached_tokens:,} reused" if usage.cached_tokens else ""
    seconds = f"{usage.first_token_seconds:.1f} s to the first token"
    of_all = f" of {context_tokens:,}" if context_tokens else ""
    return f"{total:,}{of_all} tokens{reused} · {seconds}"


def no_fit(budget: Budget, paths: Sequence[str], media: Sequence[Media], undone_tokens: int) -> ContextError:
    """Return the error of a question that doesn't fit: how many tokens each part takes, and what would make it fit.

    `undone_tokens` is how many /undo would free.
    """
    parts = sorted(zip(budget.media_tokens, paths, media, strict=True), key=lambda part: -part[0])
    named = [
        f"{path} {tokens:,}" + (f" for {medium.frame_count} frames" if medium.frame_count else "")
        for tokens, path, medium in parts[:_MOST_NAMED]
    ]
    rest = sum(tokens for tokens, _, _ in parts[_MOST_NAMED:])
    named += [f"other media {rest:,}"] * bool(rest)
    named.append(f"text {budget.text_tokens:,}")
    message = (
        f"too long: the conversation takes {budget.prompt_tokens:,} tokens ({', '.join(named)}) and the answer "
        f"up to {budget.answer_tokens:,}, but the context has {budget.context_tokens:,}"
    )
    ways = _ways(budget, media)
    if undone_tokens > 0:
        ways.append(f"/undo (frees {undone_tokens:,} tokens)")
    as_video = f"; or {AS_ONE_VIDEO}" if sum(not medium.is_video for medium in media) > 1 else ""
    if not ways:
        return ContextError(message, f"ask a shorter question, or /clear the conversation{as_video}")
    return ContextError(message, f"{' or '.join(ways)}, then /retry to ask again{as_video}")


def _ways(budget: Budget, media: Sequence[Media]) -> list[str]:
    """Return the settings, each of which alone would make the question fit."""
    frames, answer_tokens = budget.frames_each([medium.frame_count for medium in media]), budget.longest_answer
    longer = [f"/set max_new_tokens {answer_tokens}"] if answer_tokens >= _FEWEST_TOKENS else []
    return [*([f"/set frames {frames}"] if frames else []), *longer]
