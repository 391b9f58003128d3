"""How captions and paths are written for a training set: trigger words, no preamble, whole sentences, paths, names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .formats import is_metadata
from .record import path_to_text
from .storage import is_address

Paths = Literal["as-given", "absolute", "relative-to-output"]

_KIND = r"(?:short |brief )?(?:video|clip|footage|film|scene|image|picture|photo)(?: clip| footage)?"
_VERB = (
    r"(?:shows|depicts|features|captures|displays|presents|showcases|portrays|illustrates|is about|is showing|"
    r"is depicting)(?! (?:that|how|why)\b)"
)
_SEEN = r"(?:(?:we|you|one) (?:can |are able to )?see )"
_PREAMBLE = re.compile(rf"\s*(?:(?:the|this) {_KIND} {_VERB}\s+|in (?:the|this) {_KIND}\s*,\s*{_SEEN}?)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"""[.!?…]+["'”’)\]]*(?=\s|$)|[。！？]+[」』”’）]*""")
_OWN_MARK = (",", ".", ";", ":", "!", "?")  # with which a suffix continues the caption's last word


@dataclass(frozen=True)
class CaptionForm:
    """How captions are written; the default leaves them as the model gives them.

    `prefix` and `suffix` are put around a caption, with a space between. `strip_preamble` removes "The video shows"
    and similar words. `whole_sentences` removes the unfinished last sentence of an answer that was cut off.
    """

    prefix: str = ""
    suffix: str = ""
    strip_preamble: bool = False
    whole_sentences: bool = False

    @property
    def changes(self) -> dict[str, Any]:
        """The values that aren't the default: a part of a record's key, and of its settings."""
        return {name: value for name, value in asdict(self).items() if value}

    def text(self, answer: str, *, is_cut: bool) -> str:
        """Return the text to write for an answer; one that would become empty is unchanged."""
        text = answer
        if self.strip_preamble and (preamble := _PREAMBLE.match(text)) and text[preamble.end() :].strip():
            text = text[preamble.end() :]
            text = text[0].upper() + text[1:]
        if self.whole_sentences and is_cut and (ends := list(_SENTENCE_END.finditer(text))):
            text = text[: ends[-1].end()]
        return text

    def caption(self, texts: Sequence[str]) -> str:
        """Return the caption that the texts of a video's parts make."""
        caption = " ".join(texts)
        if self.prefix:
            caption = self.prefix + ("" if self.prefix[-1].isspace() or not caption else " ") + caption
        if self.suffix:
            is_joined = self.suffix[0].isspace() or self.suffix.startswith(_OWN_MARK) or not caption
            caption += ("" if is_joined else " ") + self.suffix
        return caption


@dataclass(frozen=True)
class PathForm:
    """How the path of a video is written. `folder` is that of the output, from which `relative-to-output` counts.

    With `has_file_name`, a record has a `file_name` for the videofolder of the package datasets: the path as seen from
    the folder, with forward slashes.
    """

    paths: Paths = "as-given"
    folder: str = ""
    has_file_name: bool = False

    @classmethod
    def of(cls, output: Path | None, paths: Paths = "as-given") -> PathForm:
        """Return the form for an output file: `metadata.jsonl` and its kind have file names."""
        return cls(paths, str(output.parent) if output else "", output is not None and is_metadata(output))

    def text(self, path: str) -> str:
        """Return a path as it is written in a record."""
        if self.paths == "as-given" or is_address(path):
            return path_to_text(path)
        return path_to_text(os.path.abspath(path) if self.paths == "absolute" else self._relative(path))  # noqa: PTH100 - keeps links

    def file_name(self, path: str) -> dict[str, str]:
        """Return the values that a record has for the videofolder."""
        return {"file_name": path_to_text(self._relative(path).replace(os.sep, "/"))} if self.has_file_name else {}

    def _relative(self, path: str) -> str:
        return path if is_address(path) else os.path.relpath(path, self.folder or os.curdir)


PLAIN, AS_GIVEN = CaptionForm(), PathForm()
