"""What is said in a video, with times: sound to segments of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..conversation import Segment
from ..video.sampling import Sampling

if TYPE_CHECKING:
    from ..video.sound import SoundChunk

DEFAULT_MODEL = Sampling().speech_model


@dataclass(frozen=True)
class SpeechOptions:
    """What a transcript is made with; all of it decides what comes out.

    `model` is a name of `whisper.MODELS`, a folder, or a hub id. `language` is a code such as `de`, None to detect it.
    With `translate`, the text is English. `vad` leaves out what the voice activity detector takes for no speech.
    `words` gives each word a time, and segments the times of their words.
    """

    model: str = DEFAULT_MODEL
    language: str | None = None
    translate: bool = False
    vad: bool = True
    words: bool = False


@dataclass(frozen=True)
class Word(Segment):
    """A word with the blanks and marks around it."""


@dataclass(frozen=True)
class SpokenSegment(Segment):
    """What is said, on the clock of the frames, in the language of a code."""

    language: str
    words: tuple[Word, ...] = ()


class Transcriber(Protocol):
    """What makes text of speech. Only one thread at a time calls it."""

    @property
    def name(self) -> str:
        """What names its weights: other weights have another name."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, such as why the GPU isn't used."""

    @property
    def device(self) -> str:
        """Where it computes: `cpu` or `cuda`."""

    @property
    def needed_bytes(self) -> int:
        """About what it takes of that device's memory, or of the machine's."""

    def transcribe(self, sound: Iterable[SoundChunk], options: SpeechOptions) -> Iterator[SpokenSegment]:
        """Yield what is said, in order of time, while the sound is read. Raises LlvidError.

        A chunk begins where the last one ends, or later.
        """
