"""What a written answer means, by the rules of each set."""

from __future__ import annotations

import pytest

from llava_video_cli.evaluation.extraction import (
    Extraction,
    any_letter,
    exact_choice,
    first_choice,
    last_choice,
    ranked_letter,
    same_text,
    single_letter,
    yes_or_no,
)
from llava_video_cli.evaluation.questions import Question

OPTIONS = ("a red ball", "a dog", "two cats", "nobody")
LETTERS = Question("1", "v.mp4", "?", "A", ("A", "B", "C", "D"), OPTIONS)
CAPTIONS = Question("1", "v.mp4", "?", "Option 1", ("Option 1", "Option 2"), ("a man sits", "a man stands"))
YES = Question("1", "v.mp4", "?", "yes", ("yes", "no"))


@pytest.mark.parametrize(
    ("extract", "question", "rows"),
    [
        (ranked_letter, LETTERS, {
            "B": "B", "B.": "B", "(C)": "C", "D. nobody": "D", "The answer is (B), not C": "C",
            "The best answer is: C": "C", "I think it is (D) and so on": "D", "A dog, so B": "A", "none of them": None,
            "": None, "It shows B) a dog": "B", "正确答案是C项": "C",
        }),
        (single_letter, LETTERS, {
            "(B) a dog": "B", "b. a dog": "B", "It is a ball": "A", "option C": "C", "E": None, "dog": None,
        }),
        (first_choice, LETTERS, {
            "B": "B", "(C) or (A)": "C", "D. nobody": "D", "dog": None,
            "I can see that there is a dog in it": "B", "well, there are two cats and a dog here": "C",
        }),
        (last_choice, LETTERS, {
            "B": "B", "(C) or (A)": "A", "D. nobody": "D", "well, there are two cats and a dog here": "B",
        }),
        (any_letter, LETTERS, {
            "The best answer is C": "C", "B. A dog": "B", "The answer: D": "D", "none": None, "E": None,
        }),
        (exact_choice, LETTERS, {
            "B": "B", "B. a dog": "B", "B) something": "B", "a dog": "B", "It is B": None, "C.": "C",
        }),
        (exact_choice, CAPTIONS, {
            "Option 2": "Option 2", "2": "Option 2", "a man sits": "Option 1", "Option 1: a man sits": "Option 1",
            "(1) a man stands": "Option 2", "neither": None,
        }),
        (yes_or_no, YES, {"Yes, it does.": "yes", "no": "no", "Maybe": None, "I say no": None}),
    ],
)  # fmt: skip
def test_choices_are_read(extract: Extraction, question: Question, rows: dict[str, str | None]) -> None:
    assert {text: extract(text, question) for text in rows} == rows


def test_the_same_words_are_the_same_answer() -> None:
    assert same_text("The red ball.", "a RED ball") and not same_text("red ball", "ball red")
