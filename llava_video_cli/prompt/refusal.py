"""What is said of a prompt that doesn't fit the context: how many frames do, and what else would help."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint.adaptation import can_scale, factor_for, strides_of
from ..checkpoint.config import Checkpoint
from ..conversation import Budget, Media
from ..errors import ContextError
from ..video.image import Picture

# Further, answers of a checkpoint that wasn't trained on scaled positions fall apart; and 9 tokens still show a frame.
_MOST_FACTOR, _MOST_STRIDE = 4.0, 8
_FEWEST_ANSWER_TOKENS = 64  # a shorter answer is not worth a hint


def refusal(name: str, checkpoint: Checkpoint, budget: Budget, media: Sequence[Media]) -> ContextError:
    """Return the error of a request that doesn't fit; `budget` is what it takes, in the order of its `media`.

    The hint names what alone would make it fit, computed: fewer frames, another pooling or RoPE scaling, a shorter
    answer.
    """
    counts = [len(medium.images) for medium in media if not isinstance(medium, Picture)]
    frames, fit = sum(counts), _frames_that_fit(checkpoint, budget, counts)
    takes = (
        f"the prompt takes {budget.prompt_tokens:,} tokens and the answer up to {budget.answer_tokens:,}, but the "
        f"context is {budget.context_tokens:,}"
    )
    if frames and fit >= len(counts):
        several = f" of {len(counts)} videos" if len(counts) > 1 else ""
        takes = f"{name} takes {_frames(fit)}{several} with this question; {frames} were asked for ({takes})"
    else:
        takes = takes.replace("context is", f"context of {name} is") + (f" ({_frames(frames)})" if frames else "")
    ways = _ways(checkpoint, budget, counts, fit)
    return ContextError(takes, f"what fits: {' or '.join(ways)}" if ways else "ask a shorter question")


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def _frames_that_fit(checkpoint: Checkpoint, budget: Budget, counts: Sequence[int]) -> int:
    """Return how many frames would fit in all, if each video had as many."""
    over = -budget.left
    fit = sum(counts) - -(-over // checkpoint.frame_tokens)
    return fit // len(counts) * len(counts) if counts else 0


def _ways(checkpoint: Checkpoint, budget: Budget, counts: Sequence[int], fit: int) -> list[str]:
    ways = []
    if counts and fit >= len(counts):
        ways.append(f"--frames {fit // len(counts)}")
    rest = budget.prompt_tokens + budget.answer_tokens - sum(counts) * checkpoint.frame_tokens
    for stride in strides_of(checkpoint) if counts and checkpoint.pool_mode in ("average", "max") else ():
        frame_tokens = (checkpoint.frame_side // stride) ** 2
        helps = rest + sum(counts) * frame_tokens <= budget.context_tokens
        if helps and checkpoint.pool_stride < stride <= _MOST_STRIDE:
            ways.append(f"--pool-stride {stride}")
            break
    factor = factor_for(checkpoint, budget.prompt_tokens + budget.answer_tokens)
    if can_scale(checkpoint) and factor <= _MOST_FACTOR:
        ways.append(f"--rope-factor {factor:g}")
    if (left := budget.context_tokens - budget.prompt_tokens) >= _FEWEST_ANSWER_TOKENS:
        ways.append(f"--max-new-tokens {left}")
    return ways
