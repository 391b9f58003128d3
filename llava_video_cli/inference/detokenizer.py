"""Token ids to text, piece by piece: whole words and whole characters only, up to a stop string."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from ..prompt.thinking import Thoughts, overlap

if TYPE_CHECKING:
    from ..checkpoint.config import Checkpoint

# Scripts written without spaces start here (CJK radicals); a piece may end behind any of their characters.
_UNSPACED = 0x2E80
_REPLACEMENT = "\ufffd"  # what an unfinished UTF-8 sequence decodes to
# New ids are decoded with some ids before them, so that the tokenizer sees where a word begins.
_CONTEXT_IDS = 6


class Detokenizer:
    """Decodes a growing sequence of ids; the pieces joined are the decoded whole, without outer white space.

    With `skip`, white space stays, and so many characters at the beginning are left out. The first of the strings
    `stop` ends the text, and is no part of it; neither are `thoughts`, if they are not shown. The text of `byte_ids`
    waits for another token: a run of them that is not UTF-8 is decoded to U+FFFD throughout.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stop: Sequence[str] = (),
        skip: int | None = None,
        thoughts: Thoughts | None = None,
        byte_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._decode, self._stop, self._skip, self._byte_ids = decode, StopStrings(stop), skip, byte_ids
        self.thoughts = thoughts or Thoughts(are_shown=True)
        self._ids: list[int] = []
        self._given = 0  # ids up to here are of the prompt
        self._start = 0  # ids from here on are decoded together
        self._decoded = 0  # ids up to here are in `_held` or were handed out
        self._held = ""
        self._has_text = False
        self._prefill = ""  # until it is handed out

    def begin(self, prefill: str, ids: Sequence[int]) -> None:
        """Let the text begin with a prefill, which stop strings don't look at; `ids` are the prompt's."""
        if prefill:
            self._ids = list(ids[-_CONTEXT_IDS:])
            self._decoded = self._given = len(self._ids)
            self._prefill, self._has_text = prefill, True

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string has come; there is no text behind it."""
        return self._stop.is_found

    def push(self, ids: Sequence[int]) -> str:
        """Take further ids; return the text that is now certain, or an empty string."""
        self._ids += ids
        self._decode_new()
        cut = _last_boundary(self._held)
        piece, self._held = self._held[:cut], self._held[cut:]
        return self._prefilled(self._stop.push(self._trimmed(self.thoughts.push(piece))))

    def finish(self) -> str:
        """Return the rest of the text; an unfinished character is shown as U+FFFD."""
        if self.is_stopped:
            return ""
        self._decode_new(final=True)
        piece, self._held = self.thoughts.push(self._held) + self.thoughts.finish(), ""
        piece = piece if self._skip is not None else piece.rstrip()
        text = self._stop.push(self._trimmed(piece))
        return self._prefilled(text if self.is_stopped else text + self._stop.finish(), final=True)

    def _prefilled(self, text: str, final: bool = False) -> str:
        if text or final or self.is_stopped:
            text, self._prefill = self._prefill + text, ""
        return text

    @property
    def thinking_tokens(self) -> int:
        """How many of the tokens are thoughts, their marks included; known when it has finished."""
        ids = self._ids[self._given :]

        def tokens(characters: int) -> int:
            """Return how many tokens it takes to decode so many characters."""
            return bisect_left(range(len(ids)), characters, key=lambda n: len(self._decode(ids[:n])))

        return sum(tokens(stop) - max(0, tokens(start + 1) - 1) for start, stop in self.thoughts.parts)

    def _decode_new(self, final: bool = False) -> None:
        if not final and self._byte_ids.intersection(self._ids[-1:]):
            return
        before = self._decode(self._ids[self._start : self._decoded])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(_REPLACEMENT) and not final):
            return
        self._held += text[len(before) :]
        self._start = max(self._start, self._decoded - _CONTEXT_IDS) if self._decoded else 0
        self._decoded = len(self._ids)

    def _trimmed(self, piece: str) -> str:
        if self._skip is not None:
            piece, self._skip = piece[self._skip :], max(0, self._skip - len(piece))
        elif not self._has_text:
            piece = piece.lstrip()
            self._has_text = bool(piece)
        return piece


class StopStrings:
    """Takes a text piece by piece and returns what stands before the first of the strings."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self.is_found = False

    def push(self, piece: str) -> str:
        """Take a piece; return the text that is certain to stand before a stop string."""
        self._held += piece
        found = [at for at in map(self._held.find, self._strings) if at >= 0]
        if found:
            text, self._held, self.is_found = self._held[: min(found)], "", True
            return text
        keep = max((overlap(self._held, string) for string in self._strings), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def finish(self) -> str:
        """Return what was held back, as no stop string came of it."""
        text, self._held = self._held, ""
        return text


def stop_ids(generation_config: Any, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the generation config, of a config for text, of the tokenizer.

    One that the model can't write, as a config that was copied from a larger model may name, is none. Raises
    `ModelError` for what can't be a token.
    """
    all_ids: list[int] = []
    for source in (generation_config, config.get_text_config(), tokenizer):
        ids = getattr(source, "eos_token_id", None)
        all_ids += ids if isinstance(ids, list) else [] if ids is None else [ids]
    for each in all_ids:
        if type(each) is not int or each.bit_length() > 31:
            raise ModelError(f"the checkpoint's eos_token_id must be the number of a token, got {each!r}")
    vocabulary = config.get_text_config().vocab_size
    return tuple(each for each in dict.fromkeys(all_ids) if 0 <= each < vocabulary)


def hidden_ids(tokenizer: Any, checkpoint: Checkpoint) -> frozenset[int]:
    """Return the special tokens that are no part of an answer's text, beside those that end it.

    What a fine-tune has added as special stands behind the media's tokens, the last ones of a published checkpoint: it
    may answer in these tokens (times, boxes), so they are shown, but for those with a part to play.
    """
    media = {checkpoint.image_token_id, checkpoint.video_token_id}
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(number for number in special if number <= max(media) or number in roles)


def byte_ids(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that are a single byte of text, as Llama's tokenizer has them for what its words lack."""
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = zip(names, tokenizer.convert_tokens_to_ids(names), strict=True)
    return frozenset(number for name, number in ids if number is not None and number != tokenizer.unk_token_id)


def token_bytes(tokenizer: Any, count: int) -> list[bytes]:
    """Return the bytes of the tokens 0 to `count`, which joined are an answer's text; special ones have none.

    Source: the decoders of the `tokenizers` library, ByteLevel, or ByteFallback with `▁` for spaces.
    """
    kinds = _kinds(json.loads(tokenizer.backend_tokenizer.decoder.__getstate__()))
    added, tokens = tokenizer.added_tokens_decoder, [b""] * count
    bytes_of_characters = str.maketrans({character: chr(byte) for byte, character in enumerate(_byte_characters())})
    for text, number in tokenizer.get_vocab().items():
        if number >= count or (number in added and added[number].special):
            continue
        if number in added:
            tokens[number] = text.encode()
        elif "ByteLevel" in kinds:
            tokens[number] = text.translate(bytes_of_characters).encode("latin-1", "ignore")
        elif byte := _BYTE.fullmatch(text):
            tokens[number] = bytes((int(byte[1], 16),))
        else:
            tokens[number] = text.replace("▁", " ").encode()
    return tokens


_BYTE = re.compile("<0x([0-9A-F]{2})>")


def _kinds(decoder: dict[str, Any]) -> set[str]:
    return {decoder["type"]}.union(*map(_kinds, decoder.get("decoders", ())))


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = iter(range(256, 512))
    return [chr(byte if byte in visible else next(rest)) for byte in range(256)]


def _last_boundary(text: str) -> int:
    """Return where the last whole word ends: white space waits for the word behind it."""
    end = len(text.rstrip())
    for index in range(len(text) - 1, -1, -1):
        if index <= end and text[index].isspace():
            return len(text[:index].rstrip())
        if index < end and ord(text[index]) >= _UNSPACED:
            return index + 1
    return 0
