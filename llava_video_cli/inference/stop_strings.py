"""Texts that end an answer, found in a stream however it is cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence

from .detokenizer import Decode, TextPieces


class Stops:
    """Takes an answer piece by piece and gives what stands before the first of the texts; that text is not given."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.ended = False

    def push(self, piece: str) -> str:
        """Take a piece; return what is sure to stand before a stop."""
        self._held += piece
        found = [at for at in map(self._held.find, self._texts) if at >= 0]
        if found:
            given, self._held, self.ended = self._held[: min(found)], "", True
            return given
        keep = max((_overlap(self._held, text) for text in self._texts), default=0)
        cut = len(self._held) - keep
        given, self._held = self._held[:cut], self._held[cut:]
        return given

    def finish(self) -> str:
        """Return what was held back, as no stop came of it."""
        given, self._held = self._held, ""
        return given


class StoppedPieces:
    """Decodes a growing sequence of ids as `TextPieces` does, up to the first of the texts that end it."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._pieces, self._stops = TextPieces(decode), Stops(stop)

    @property
    def ended(self) -> bool:
        """Whether one of the texts has come; nothing is given behind it."""
        return self._stops.ended

    def push(self, ids: Sequence[int]) -> str:
        """Take further ids; return the text that is now sure, or an empty string."""
        return self._stops.push(self._pieces.push(ids))

    def finish(self) -> str:
        """Return what is left."""
        if self.ended:
            return ""
        text = self._stops.push(self._pieces.finish())
        return text if self.ended else text + self._stops.finish()


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text a stop could begin with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
