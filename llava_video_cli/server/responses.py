"""Answers in the form of OpenAI's chat completions, whole and in chunks.

Source of the form: https://platform.openai.com/docs/api-reference/chat. What stands under `llvid` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..conversation import FinishReason, Usage


@dataclass(frozen=True)
class Form:
    """How the answer to one request is written. `id` and `created` (seconds since 1970) are the same in all parts."""

    id: str
    created: int
    model: str

    def whole(self, text: str, reason: FinishReason, usage: Usage, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Return a whole answer; `ours` is what `llvid` holds besides the usage."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": _reason(reason),
        }
        return self._head("chat.completion") | {"choices": [choice]} | _costs(reason, usage, ours)

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with a piece of the text."""
        return self._chunk({"content": text})

    def first(self) -> dict[str, Any]:
        """Return the chunk that stands before all text."""
        return self._chunk({"role": "assistant", "content": ""})

    def last(self, reason: FinishReason) -> dict[str, Any]:
        """Return the chunk that ends the text."""
        return self._chunk({}, _reason(reason))

    def costs(self, reason: FinishReason, usage: Usage, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chunk that stands behind all others, without a choice."""
        return self._head("chat.completion.chunk") | {"choices": []} | _costs(reason, usage, ours)

    def _chunk(self, delta: Mapping[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _costs(reason: FinishReason, usage: Usage, ours: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.generated_tokens,
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
        "llvid": {"finish_reason": reason, "usage": asdict(usage), **ours},
    }


def _reason(reason: FinishReason) -> str:
    return "stop" if reason == "repetition" else reason  # OpenAI has no word for it
