"""`llvid ask --messages`: the answer to a conversation that was written down."""

from __future__ import annotations

from dataclasses import replace

from ..errors import UsageError
from ..runs.conversation_file import Conversation
from ..runs.session import Session
from . import console
from .ask import UNFINISHED
from .chat_answers import Talk
from .options import OutputFlags
from .settings import Settings


def answer(written: Conversation, settings: Settings, output: OutputFlags) -> None:
    """Read its media while the model loads, then answer its last question."""
    preset = settings.preset
    session = replace(Session.of(written.drafts, preset.sampling, preset.generation), system=preset.system)
    if session.question is None:
        raise UsageError("the last message must be the user's, with a text")
    with console.progress(output.quiet) as progress:
        talk = Talk(session, settings, output, progress)
        talk.insist(session)
        said = talk.answer(session, talk.request(session))
        if said.finish_reason != "stop" and not output.quiet:
            console.note(UNFINISHED[said.finish_reason].format(preset.generation.max_new_tokens))
