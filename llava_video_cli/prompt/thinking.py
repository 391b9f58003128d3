"""What a model thinks before it answers: `<think>` and `</think>` around a part of its text."""

from __future__ import annotations

import re

_OPENING, _CLOSING = "<think>", "</think>"
_OPENED = re.compile(rf"{_OPENING}\s*\Z")


class Thoughts:
    """Leaves out of a text that comes piece by piece what stands between the marks, and the marks.

    `is_thinking` may be set at the beginning, where the prompt has the first mark. `parts` are the characters
    `[start, stop)` of each thought in the whole text. Thoughts that `are_shown` stay in the text.
    """

    def __init__(self, *, are_shown: bool = False) -> None:
        self.is_thinking, self._are_shown = False, are_shown
        self.parts: list[tuple[int, int]] = []
        self._held, self._at, self._start = "", 0, 0  # what is held back begins at `_at`, the last thought at `_start`

    def push(self, piece: str) -> str:
        """Take a piece; return the text that certainly stays."""
        self._held += piece
        text = ""
        while (at := self._held.find(self._mark)) >= 0:
            text += self._take(at, is_thought=self.is_thinking)
            self._start = self._start if self.is_thinking else self._at
            text += self._take(len(self._mark), is_thought=True)
            if self.is_thinking:
                self.parts.append((self._start, self._at))
            self.is_thinking = not self.is_thinking
        return text + self._take(len(self._held) - overlap(self._held, self._mark), is_thought=self.is_thinking)

    def finish(self) -> str:
        """Return what was held back; a thought that has not ended is none the less one."""
        text = self._take(len(self._held), is_thought=self.is_thinking)
        if self.is_thinking:
            self.parts.append((self._start, self._at))
        return text

    @property
    def _mark(self) -> str:
        return _CLOSING if self.is_thinking else _OPENING

    def _take(self, count: int, *, is_thought: bool) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._at += count
        return "" if is_thought and not self._are_shown else text


def opens_thought(prompt: str) -> bool:
    """Return whether a prompt ends with the beginning of a thought, as some chat templates write it."""
    return _OPENED.search(prompt) is not None


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
