"""What chat says of the context: after each answer, and when a question doesn't fit."""

from __future__ import annotations

from collections.abc import Sequence

from ..conversation import Media, Usage
from ..errors import ContextError
from ..prompt.budget import Budget

_FEWEST_TOKENS = 16  # an answer of fewer is not worth a hint
_MOST_NAMED = 4  # media, the largest first


def used(usage: Usage, context_tokens: int) -> str:
    """Return the line behind an answer; a context of 0 tokens is not known."""
    total = usage.prompt_tokens + usage.generated_tokens
    cached = f", {usage.cached_tokens:,} not computed again" if usage.cached_tokens else ""
    seconds = f"{usage.first_token_seconds:.1f} s to the first word"
    of_all = f" of {context_tokens:,}" if context_tokens else ""
    return f"{total:,}{of_all} tokens{cached} · {seconds}"


def refusal(budget: Budget, paths: Sequence[str], media: Sequence[Media], undone_tokens: int) -> ContextError:
    """Return the error of a question that doesn't fit: what takes how much, and what would make room.

    `undone_tokens` is what taking the last step back would give.
    """
    parts = sorted(zip(budget.media_tokens, paths, media, strict=True), key=lambda part: -part[0])
    named = [f"{path} {tokens:,}{_frames(medium.frame_count)}" for tokens, path, medium in parts[:_MOST_NAMED]]
    rest = sum(tokens for tokens, _, _ in parts[_MOST_NAMED:])
    named += [f"other media {rest:,}"] * bool(rest)
    named.append(f"text {budget.text_tokens:,}")
    message = (
        f"no room: the conversation takes {budget.prompt_tokens:,} tokens ({', '.join(named)}) and the answer "
        f"up to {budget.answer_tokens:,}, but the context is {budget.context_tokens:,}"
    )
    helpful = ways(budget, media)
    if undone_tokens > 0:
        helpful.append(f"/undo (gives back {undone_tokens:,} tokens)")
    if not helpful:
        return ContextError(message, "/clear begins anew; or ask a shorter question")
    return ContextError(message, f"{' or '.join(helpful)}, then /retry asks again")


def ways(budget: Budget, media: Sequence[Media]) -> list[str]:
    """Return the settings each of which would do alone."""
    frames, answer_tokens = budget.frames_each([medium.frame_count for medium in media]), budget.longest_answer
    longer = [f"/set max_new_tokens {answer_tokens}"] if answer_tokens >= _FEWEST_TOKENS else []
    return [*([f"/set frames {frames}"] if frames else []), *longer]


def _frames(count: int) -> str:
    return f" for {count} frames" if count else ""
