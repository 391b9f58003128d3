"""Token ids to text, piece by piece: whole words and whole characters only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

# Scripts written without spaces start here (CJK radicals); a piece may end behind any of their characters.
_UNSPACED = 0x2E80
_REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
# An id at a time is decoded with some ids before it, so that the tokenizer sees where a word begins.
_CONTEXT_IDS = 6


class TextPieces:
    """Decodes a growing sequence of ids; the pieces joined are the decoded whole, without outer white space."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # ids from here on are decoded together
        self._shown = 0  # ids up to here are in `_held` or were handed out
        self._held = ""
        self._begun = False

    def push(self, ids: Sequence[int]) -> str:
        """Take further ids; return the text that is now sure, or an empty string."""
        self._ids += ids
        self._take()
        cut = _last_boundary(self._held)
        piece, self._held = self._held[:cut], self._held[cut:]
        return self._trimmed(piece)

    def finish(self) -> str:
        """Return what is left; an unfinished character is shown as U+FFFD."""
        self._take(final=True)
        piece, self._held = self._held.rstrip(), ""
        return self._trimmed(piece)

    def _take(self, final: bool = False) -> None:
        known = self._decode(self._ids[self._start : self._shown])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(known) or (text.endswith(_REPLACEMENT) and not final):
            return
        self._held += text[len(known) :]
        self._start = max(self._start, self._shown - _CONTEXT_IDS) if self._shown else 0
        self._shown = len(self._ids)

    def _trimmed(self, piece: str) -> str:
        if not self._begun:
            piece = piece.lstrip()
            self._begun = bool(piece)
        return piece


def _last_boundary(text: str) -> int:
    """Return where the last whole word ends: white space waits for the word behind it."""
    end = len(text.rstrip())
    for index in range(len(text) - 1, -1, -1):
        if index <= end and text[index].isspace():
            return len(text[:index].rstrip())
        if index < end and ord(text[index]) >= _UNSPACED:
            return index + 1
    return 0
