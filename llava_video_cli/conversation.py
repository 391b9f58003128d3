"""A question as a value, and an answer as a stream of values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from .errors import UsageError
from .validation import brief, is_unicode
from .video import Frames
from .video.image import Picture

Media: TypeAlias = Frames | Picture
Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "repetition"]
ANY_OBJECT = '{"type": "object"}'  # the schema of any JSON object
_MOST_CHOICES, _MOST_CHARACTERS = 100, 20_000  # of all choices together
_FIRST_FIELDS = 5  # of `Generation`, which are in each record's key


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: its media come before its text, in their order."""

    role: Role
    text: str
    media: tuple[Media, ...] = ()


@dataclass(frozen=True)
class Generation:
    """How the answer is generated: greedy at temperature 0, else sampled.

    `seed` makes a sampled answer repeatable on the same machine and versions. The answer begins with `prefill`. With
    `choices` (texts, or one text with commas between them), it is the likeliest of them, and nothing is generated;
    `length_normalized` divides the logarithm of each one's probability by the number of its tokens. `top_k` 0 takes all
    tokens. `min_p` is a share of the likeliest token's probability. The penalties for presence and frequency count the
    answer's tokens only. An answer fits the JSON schema `schema`, which is JSON text, or the whole of it matches
    `regex`. What a model thinks before it answers is a part of the answer only with `show_thinking`. Raises
    `UsageError` for a value outside its range, and for settings that exclude each other.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    choices: tuple[str, ...] = ()
    length_normalized: bool = False
    prefill: str = ""
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    schema: str | None = None
    regex: str | None = None
    show_thinking: bool = False

    def __post_init__(self) -> None:
        given: Sequence[str] | str = self.choices
        parts = [part.strip() for part in given.split(",") if given] if isinstance(given, str) else given
        object.__setattr__(self, "choices", tuple(parts))
        is_greedy = self.temperature == 0  # logits divided by a temperature near 0 would be infinite
        checks = (
            (0 < self.max_new_tokens < 2**63, "max_new_tokens", f"from 1 to {2**63 - 1}", self.max_new_tokens),
            (0 <= self.temperature < math.inf, "temperature", "0 or more", self.temperature),
            (is_greedy or self.temperature >= 1e-6, "temperature", "0, or 0.000001 or more", self.temperature),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p),
            (0.01 <= self.repetition_penalty <= 100, "repetition_penalty", "from 0.01 to 100", self.repetition_penalty),
            (self.seed is None or 0 <= self.seed < 2**63, "seed", f"from 0 to {2**63 - 1}", self.seed),
            (0 <= self.top_k < 2**31, "top_k", f"from 0 to {2**31 - 1}", self.top_k),
            (0 <= self.min_p <= 1, "min_p", "from 0 to 1", self.min_p),
            (-100 <= self.presence_penalty <= 100, "presence_penalty", "from -100 to 100", self.presence_penalty),
            (-100 <= self.frequency_penalty <= 100, "frequency_penalty", "from -100 to 100", self.frequency_penalty),
            *((is_unicode(choice), "choices", "UTF-8 text", choice) for choice in self.choices),
            (is_unicode(self.prefill), "prefill", "UTF-8 text", self.prefill),
        )
        for holds, name, allowed, got in checks:
            if not holds:
                raise UsageError(f"{name} must be {allowed}, got {brief(got)}")
        if self.choices:
            self._check_choices()
        elif self.length_normalized:
            raise UsageError("length_normalized needs choices")
        forms = [name for name in ("choices", "schema", "regex", "prefill") if getattr(self, name)]
        if len(forms) > 1 and forms != ["choices", "prefill"]:
            raise UsageError(f"{forms[0]} and {forms[1]} can't be used together")

    def _check_choices(self) -> None:
        count, size = len(self.choices), sum(map(len, self.choices))
        if not 2 <= count <= _MOST_CHOICES or size > _MOST_CHARACTERS:
            allowed = f"from 2 to {_MOST_CHOICES}, with {_MOST_CHARACTERS:,} characters together at most"
            raise UsageError(f"the number of choices must be {allowed}: got {count}, with {size:,} characters")
        if not all(choice.strip() for choice in self.choices):
            raise UsageError("a choice is empty")
        if twice := [choice for choice in self.choices if self.choices.count(choice) > 1]:
            raise UsageError(f"the choice {brief(twice[0])} appears twice")
        penalties = (("repetition_penalty", 1), ("presence_penalty", 0), ("frequency_penalty", 0))
        for name, unused in (("temperature", 0), *penalties):
            if (got := getattr(self, name)) != unused:
                raise UsageError(f"{name} must be {unused} with choices, got {got}", "the likeliest one is the answer")

    @property
    def is_constrained(self) -> bool:
        """Whether each token is chosen among those that a schema or a regex allows."""
        return self.schema is not None or self.regex is not None

    def values(self) -> dict[str, Any]:
        """Return the fields as JSON values, those that were added later only where they differ from their defaults.

        The key of a record that an older version wrote stays the same.
        """
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for number, field in enumerate(fields(self))
            if (value := getattr(self, field.name)) != field.default or number < _FIRST_FIELDS
        }

    def asked(self, random_seed: int | None) -> Generation:
        """Return what the user asked for: without a seed that was chosen at random because none was given."""
        return replace(self, seed=None) if random_seed is not None and self.seed == random_seed else self


@dataclass(frozen=True)
class Request:
    """A conversation that ends with a user's turn, and how to answer it.

    The answer ends before the first of the texts `stop` that appears in it. With `logprobs`, each of its tokens comes
    with its probability, and with so many of the likeliest ones in its place. If the turns tell the times of frames,
    `untimed` are the turns without them, for a model whose prompts have these times anyway.
    """

    turns: tuple[Turn, ...]
    generation: Generation = Generation()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    untimed: tuple[Turn, ...] = ()

    @property
    def media(self) -> tuple[Media, ...]:
        """All media, in the order in which the prompt holds them."""
        return tuple(medium for turn in self.turns for medium in turn.media)

    @property
    def frame_counts(self) -> list[int]:
        """The frames of each of its media, 0 for a picture."""
        return [medium.frame_count for medium in self.media]


@dataclass(frozen=True)
class Usage:
    """What an answer cost: counts in tokens, times in seconds, memory in bytes.

    `cached_tokens` of `prompt_tokens` were reused from an earlier prompt. `first_token_seconds` and `total_seconds`
    count from the moment the model got the request. `peak_memory_bytes` is the accelerator's peak, or,
    without one, the peak resident size of the process. `thinking_tokens` of `generated_tokens` are no part of the
    answer, but what the model thought before it. `media_tokens` of the prompt stand for each of its media; empty where
    that isn't known.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    first_token_seconds: float
    total_seconds: float
    peak_memory_bytes: int
    thinking_tokens: int = 0
    media_tokens: tuple[int, ...] = ()

    def values(self) -> dict[str, int | float]:
        """Return the JSON values of the whole."""
        return {name: value for name, value in asdict(self).items() if name != "media_tokens"}


@dataclass(frozen=True)
class TokenLogprob:
    """The natural logarithm of a token's probability in the model's own logits, before anything changes them.

    `content` is its share of the text in UTF-8, maybe a part of a character, and empty for a special token. `top` are
    the likeliest tokens in its place.
    """

    token: str
    content: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Scores(Mapping[str, float]):
    """The probability of each choice, in the order of the request; together they are 1.

    `logprobs` are the natural logarithms of what the model gives each choice's tokens, `tokens` their numbers.
    """

    logprobs: Mapping[str, float]
    tokens: Mapping[str, int]
    length_normalized: bool = False

    @cached_property
    def _probabilities(self) -> dict[str, float]:
        weights = {
            choice: logprob / (self.tokens[choice] if self.length_normalized else 1)
            for choice, logprob in self.logprobs.items()
        }
        largest = max(weights.values())
        shares = {choice: math.exp(weight - largest) for choice, weight in weights.items()}
        total = sum(shares.values())
        return {choice: share / total for choice, share in shares.items()}

    @property
    def best(self) -> str:
        """The likeliest choice; the first of several that are equally likely."""
        return max(self, key=self.__getitem__)

    def __getitem__(self, choice: str) -> float:
        return self._probabilities[choice]

    def __iter__(self) -> Iterator[str]:
        return iter(self.logprobs)

    def __len__(self) -> int:
        return len(self.logprobs)


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; only the last one has the reason why the answer ended, the usage, and the scores if any.

    `logprobs` are of tokens up to here, if they were asked for.
    """

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    scores: Scores | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A complete answer; if the request had choices, with their scores."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    scores: Scores | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A text about the part `[start_seconds, end_seconds)` of a video, or spoken in it."""

    start_seconds: float
    end_seconds: float
    text: str


def first_out_of_order(roles: Sequence[Role]) -> tuple[int, Role] | None:
    """Return the index of the first turn with a wrong role, and the right role; None if the order is right.

    One system turn may come first. After it, user and assistant alternate, and the user begins.
    """
    start = 1 if roles and roles[0] == "system" else 0
    alternating: tuple[Role, Role] = ("user", "assistant")
    expected = ((index, alternating[(index - start) % 2]) for index in range(start, len(roles)))
    return next(((index, role) for index, role in expected if roles[index] != role), None)


def join(chunks: Iterable[Chunk]) -> Answer:
    """Return the stream as a whole answer; raises `ValueError` if it has no last chunk."""
    pieces = list(chunks)
    last = pieces[-1] if pieces else Chunk("")
    if last.finish_reason is None or last.usage is None:
        raise ValueError("the stream of chunks ended without a finish reason")
    text, logprobs = "".join(chunk.text for chunk in pieces), tuple(each for chunk in pieces for each in chunk.logprobs)
    return Answer(text, last.finish_reason, last.usage, last.scores, logprobs)
