"""The choice that a written answer means, by the rules that each question set is scored with.

The rules are those of lmms-eval 0.7. Where it draws a random choice for an answer that none of them reads, or asks
another model, the answer is unreadable here, and counts as wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from .questions import Question

Extraction: TypeAlias = "Callable[[str, Question], str | None]"

_PHRASES = (
    "answer is", "option is", "choice is", "i choose", "i select", "i pick",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
# Behind a phrase comes the middle one of these ranks. `{}` is the class of the letters.
_TRUSTED_MORE = (r"^\s*({})(?![^\W\d_])", r"(?<![^\W\d_])({})\s*$")
_TRUSTED_LESS = (r"\(({})\)", r"({})\.", r"({}):", r"({})\)", r"({}) ", r"({})")
_LEAST_WORDS = 6  # of an answer in which the text of an option is looked for
_ANSWER_WORDS = re.compile(
    r"The (?:best|correct) answer is|The answer is|The answer|The best option is|The correct option is|Best answer:|"
    r"Best option:"
)


def ranked_letter(text: str, question: Question) -> str | None:
    """Return the last letter in the most trusted of the ways to write one (Video-MME, MLVU)."""
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    text = f" {text} "
    letters = f"[{''.join(question.choices)}]"
    for form in _TRUSTED_MORE:
        if found := re.findall(form.format(letters), text):
            return str(found[-1])
    lower = text.lower()
    behind = [
        (text.find(letter, lower.find(phrase) + len(phrase)), letter)
        for phrase in _PHRASES
        if phrase in lower
        for letter in question.choices
    ]
    if max(behind, default=(-1, ""))[0] >= 0:
        return max(behind)[1]
    for form in _TRUSTED_LESS:
        if found := re.findall(form.format(letters), text):
            return str(found[-1])
    return None


def single_letter(text: str, question: Question) -> str | None:
    """Return the first letter that stands alone, in either case (MVBench)."""
    if dotted := re.match(r"([A-E])\.\s*.+$", text.strip(), re.IGNORECASE):
        letter = dotted[1].upper()
    else:
        plain = re.sub(r"\.(?!\d)", "", text.replace("_", " "))
        alone = re.search(r"\b([A-E])\b", plain, re.IGNORECASE)
        letter = alone[1].upper() if alone else ""
    return letter if letter in question.choices else None


def first_choice(text: str, question: Question) -> str | None:
    """Return the first letter in brackets, before a space or a full stop, else the first option's text (EgoSchema)."""
    text = _bare(text)
    places = [
        (text.rfind(form), letter)
        for letter in question.choices
        for form in (f"({letter})", f"{letter} ", f"{letter}.")
        if form in text
    ]
    return min(places)[1] if places else _option(text, question, min)


def last_choice(text: str, question: Question) -> str | None:
    """Return the last letter in brackets, else alone, else before a full stop, else the last option (NExT-QA)."""
    text = _bare(text)
    for form, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        places = [
            (text.rfind(place.format(letter)), letter) for letter in question.choices if form.format(letter) in text
        ]
        if places:
            return max(places, key=lambda each: each[0])[1]
    return _option(text, question, max)


def any_letter(text: str, question: Question) -> str | None:
    """Return the first capital letter from A to E behind the usual phrases (LongVideoBench)."""
    found = re.search("[ABCDE]", _ANSWER_WORDS.sub("", text))
    return found[0] if found and found[0] in question.choices else None


def exact_choice(text: str, question: Question) -> str | None:
    """Return the choice of an answer that is nothing else, or begins with a letter and a mark (TempCompass)."""
    text = text.strip()
    for choice, option in zip(question.choices, question.options or question.choices, strict=True):
        name = choice.split()[-1]  # of "Sentence A" or "Option 1", also A and 1
        if text in (option, f"{choice}: {option}", f"{choice}. {option}") or text.replace(".", "") in (choice, name):
            return choice
        if ") " in text and option == text.split(") ")[1]:
            return choice
        if len(choice) == 1 and text.startswith((f"{choice}.", f"{choice})")):
            return choice
    return None


def yes_or_no(text: str, question: Question) -> str | None:
    """Return the yes or no that an answer begins with."""
    return next((choice for choice in question.choices if text.strip().lower().startswith(choice.lower())), None)


def same_text(text: str, other: str) -> bool:
    """Whether two answers have the same words: case, articles, marks and the form of letters don't count."""
    return _words(text) == _words(other)


def _words(text: str) -> list[str]:
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return [word for word in words if word not in ("a", "an", "the")]


def _bare(text: str) -> str:
    for mark in ",.!?;:'":
        text = text.strip(mark)
    return f" {text} "


def _option(text: str, question: Question, which: Callable[[list[tuple[int, str]]], tuple[int, str]]) -> str | None:
    """Return the letter of an option whose text is in a longer answer."""
    if len(text.split()) < _LEAST_WORDS:
        return None
    places = [
        (text.lower().rfind(option.lower()), letter)
        for letter, option in zip(question.choices, question.options, strict=False)
        if option.lower() in text.lower()
    ]
    return which(places)[1] if places else None
