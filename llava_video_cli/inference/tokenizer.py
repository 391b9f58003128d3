"""A checkpoint's tokenizer and its chat template, for several threads at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

from ..checkpoint.files import tokenizer_errors
from ..prompt.chat_template import chat_template
from .detokenizer import byte_ids, token_bytes
from .loader import Loaded


class Tokenizer:
    """The tokenizer and the chat template of a loaded checkpoint; `own` is transformers'."""

    def __init__(self, name: str, loaded: Loaded) -> None:
        self.name, self.own = name, loaded.processor.tokenizer
        self._lock = threading.Lock()  # it is changed while it is used
        self.byte_ids = byte_ids(self.own)
        self._vocabulary, self._size = loaded.vocabulary, loaded.model.config.get_text_config().vocab_size
        source = loaded.processor.chat_template or self.own.chat_template
        source = source.get("default") if isinstance(source, dict) else source
        self.template = chat_template(name, source or "", self.own.special_tokens_map)

    def ids(self, text: str) -> list[int]:
        """Return a prompt's ids."""
        # A template may write the opening token itself; the tokenizer must not write it again.
        has_opening = self.own.bos_token is not None and text.startswith(self.own.bos_token)
        with self._lock, tokenizer_errors(self.name):
            ids: list[int] = self.own(text, add_special_tokens=not has_opening)["input_ids"]
        return ids

    def decode(self, ids: list[int], hidden: frozenset[int]) -> str:
        """Return the text of ids, without those that are hidden."""
        text: str = self.own.decode([token for token in ids if token not in hidden], skip_special_tokens=False)
        return text

    @cached_property
    def tokens(self) -> Sequence[bytes]:
        """The bytes of each token; special ones have none."""
        if self._vocabulary is not None:
            return self._vocabulary.tokens
        with self._lock:
            return token_bytes(self.own, self._size)

    def describe(self, number: int) -> tuple[str, bytes]:
        """Return the text of a token, or the name of a special one, and its bytes."""
        if content := self.tokens[number]:
            return content.decode("utf-8", "replace"), content
        with self._lock:
            return self.own.convert_ids_to_tokens(number) or "", b""
