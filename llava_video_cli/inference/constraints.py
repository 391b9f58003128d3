"""Constraints: an answer that fits a JSON schema, or matches a regex, token by token, by llguidance.

A grammar says which tokens may come next. What it takes is bounded: llguidance counts its own work, and opens neither
files nor URLs.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..conversation import Generation
from ..errors import GrammarError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from llguidance import LLMatcher

# JSON as Python writes it, without any other white space: a small model could write that for ever.
_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_STRICT = {"lenient": False, "coerce_one_of": False}  # what can't be honoured is an error
_MOST_LEXER_STATES = 50_000  # of one answer, with 1 to 2 kB each
# llguidance's measure of the work for a regex, in which all other answers wait: up to 0.4 s, where its own bound took
# 6 s. 5,000 values of an enum need half of it.
_MOST_LEXER_WORK = 100_000
_VALUES = ("const", "enum", "default", "examples")  # keywords that hold no schemas
_KEPT = 16  # compiled grammars
_OWN_KEY = "x-guidance"  # with which a schema could change what is set here
_MOST_SHOWN = 200  # characters of llguidance's own words
_PLACE = re.compile(r"^at \d+\(\d+\): ")


def check(generation: Generation) -> None:
    """Raise `UsageError` for what can't be followed completely, `MissingExtraError` without the extra."""
    if not generation.is_constrained:
        return
    problem = _llguidance().LLMatcher.validate_grammar(_grammar(generation), limits=_limits())
    if problem and not problem.startswith("WARNING"):
        raise _refused(generation, problem)


class Constraint:
    """What may come next in one answer, for one thread: `fill`, then `take`, for each token.

    `failure` is set once the grammar can't go on: the answer can't be ended well. `fails` is called then.
    """

    def __init__(self, matcher: LLMatcher, fails: Callable[[], object] = lambda: None) -> None:
        self._matcher, self._fails = matcher, fails
        self.failure: GrammarError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more can follow."""
        return self.failure is None and bool(self._matcher.is_stopped())

    def fill(self, address: int, size_bytes: int) -> None:
        """Write a bit for each token into memory, 1 for those that may come next."""
        if self.failure is None:
            self._matcher.unsafe_compute_mask_ptr(address, size_bytes)
            self._note()

    def take(self, token: int) -> None:
        """Take note of the next token."""
        if self.failure is None:
            self._matcher.consume_token(token)
            self._note()

    def _note(self) -> None:
        if self._matcher.is_error():
            words = _first_line(self._matcher.get_error())
            self.failure = GrammarError(
                f"the schema or regex of an answer is too complex: {words}", "use a simpler one"
            )
            self._fails()


class Vocabulary:
    """The bytes of each token of a model, none for those that are no text, and the `tree` of all of them.

    The tree of 150,000 tokens takes 0.4 s, in which no other Python code runs. Raises `MissingExtraError`.
    """

    def __init__(self, tokens: Sequence[bytes], stop_ids: Sequence[int]) -> None:
        llguidance, stop_ids = _llguidance(), [number for number in stop_ids if number < len(tokens)]
        self.tokens = tokens
        wrapped = llguidance.TokenizerWrapper(_GuidanceTokenizer(tokens, stop_ids))
        self.tree = llguidance.LLTokenizer(wrapped, eos_token=stop_ids)


class Grammars:
    """The constraints of one model's answers; compiled grammars are kept for the next request. For one thread.

    `opening` is what the chat template writes between the prompt and an answer: an answer's first token begins with it.
    """

    def __init__(self, vocabulary: Vocabulary, opening: str) -> None:
        self._vocabulary, self.opening = vocabulary, opening
        self._kept: OrderedDict[tuple[str | None, str | None], LLMatcher] = OrderedDict()

    def constraint(self, generation: Generation) -> Constraint | None:
        """Return what constrains an answer, or None if nothing does.

        Raises `UsageError` for a schema or regex that can't be honoured, `MissingExtraError` if the extra is missing.
        """
        if not generation.is_constrained:
            return None
        key = generation.schema, generation.regex
        if key not in self._kept:
            self._kept[key] = self._compiled(generation)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        # one that gets too complex in mid-answer has taken 150 MB, which its copies share
        return Constraint(self._kept[key].deep_copy(), lambda: self._kept.pop(key, None))

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self._vocabulary.tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens as the grammar takes it, to the byte."""
        return b"".join(self._vocabulary.tokens[number] for number in ids).decode("utf-8", "replace")

    def _compiled(self, generation: Generation) -> LLMatcher:
        llguidance = _llguidance()
        for opening in dict.fromkeys(("", self.opening)):
            grammar = _grammar(generation, opening)
            matcher: LLMatcher = llguidance.LLMatcher(self._vocabulary.tree, grammar, log_level=0, limits=_limits())
            matcher.compute_bitmask()  # what has no answer at all is found only here
            if matcher.is_error() or matcher.is_stopped():
                problem = matcher.get_error()
                is_empty = not problem or problem.startswith("NoExtension")
                raise _refused(generation, "no answer fits it" if is_empty else problem)
        matcher.reset()
        return matcher


class _GuidanceTokenizer:
    """What llguidance asks of a tokenizer. It encodes text only to look for forced tokens, which are not used here."""

    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokens: Sequence[bytes], stop_ids: Sequence[int]) -> None:
        self.tokens, self.eos_token_id = tokens, stop_ids[0]
        self._ids = {token: number for number, token in enumerate(tokens) if len(token) == 1}

    def __call__(self, text: str | bytes) -> list[int]:
        raw = text.encode() if isinstance(text, str) else text
        return [self._ids[bytes((byte,))] for byte in raw if bytes((byte,)) in self._ids]


def _grammar(generation: Generation, opening: str = "") -> str:
    """Return a grammar as llguidance reads it; an answer begins with `opening`. Raises `UsageError`."""
    llguidance = _llguidance()
    if generation.schema is not None:
        try:
            schema = {**json.loads(generation.schema), _OWN_KEY: _STYLE | _STRICT}
            if _counts_open_names(schema):
                problem = "with minProperties, each name must be listed in properties"
                raise _refused(generation, problem)
            text = json.dumps(schema)
            if not opening:
                return str(llguidance.LLMatcher.grammar_from_json_schema(text))
        except (ValueError, TypeError, RecursionError) as error:
            is_deep = isinstance(error, RecursionError) or "recursion" in str(error)
            raise _refused(generation, "it is nested too deeply" if is_deep else str(error)) from None
        answer = f"%json {text}"
    else:
        assert generation.regex is not None
        if not opening:
            return str(llguidance.LLMatcher.grammar_from_regex(generation.regex))
        answer = "/" + llguidance.regex_to_lark(generation.regex, "").replace("\n", "\\n") + "/"
    return str(llguidance.LLMatcher.grammar_from_lark(f"start: {json.dumps(opening)} answer\nanswer: {answer}\n"))


def _counts_open_names(schema: Any) -> bool:
    """Return whether an object must have so many properties that it might repeat a name, which then counts once."""
    if isinstance(schema, list):
        return any(map(_counts_open_names, schema))
    if not isinstance(schema, dict):
        return False
    least, required = schema.get("minProperties"), schema.get("required")
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    most_sure = 1 + (len(required) if isinstance(required, list) else 0)
    if is_open and isinstance(least, (int, float)) and least > most_sure:
        return True
    return any(_counts_open_names(value) for name, value in schema.items() if name not in _VALUES)


def _refused(generation: Generation, problem: str) -> UsageError:
    kind = "schema" if generation.schema is not None else "regex"
    lines = [line for line in problem.splitlines() if line.startswith("error: ")]  # of a pattern, drawn in many lines
    words = f"in a pattern, {lines[-1].removeprefix('error: ')}" if lines else _first_line(problem)
    return UsageError(
        f"the {kind} can't be followed completely: {words}", "leave that part out, or write it differently"
    )


def _first_line(problem: str) -> str:
    line = _PLACE.sub("", problem.strip().partition("\n")[0]).removeprefix("failed to compile JSON schema: ")
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


def _limits() -> Any:
    return _llguidance().LLParserLimits(
        initial_lexer_fuel=_MOST_LEXER_WORK, max_lexer_states=_MOST_LEXER_STATES, verbose_errors=False
    )


def _llguidance() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise MissingExtraError("a schema needs the extra 'schema' (llguidance is missing)", "schema") from None
    return llguidance
