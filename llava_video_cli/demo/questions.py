"""The questions that the demo checkpoint knows: their wordings, their right answers, and the check of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np

from .world import COLORS, DIRECTIONS, SHAPES, Scene

Media = Literal["video", "picture", "both"]


@dataclass(frozen=True)
class QuestionKind:
    """A kind of question: the media that it is about, and its wordings, the main one first."""

    kind: str
    media: Media
    wordings: tuple[str, ...]


def _all(*parts: str) -> tuple[str, ...]:
    """All combinations of the parts as sentences; `|` separates the alternatives of a part, which may be empty."""
    choices = product(*(part.split("|") for part in parts))
    return tuple(" ".join(word for word in choice if word) for choice in choices)


_STORY = (
    *_all("Describe", "the|this", "video.|clip."),
    *_all("Describe", "the|this", "video", "in detail.|in one sentence.|briefly.|in one short sentence."),
    *_all("Describe what happens in", "the|this", "video.|clip.|video in one sentence.|video in detail."),
    *_all("Caption", "the|this", "video.|clip."),
    *_all("Write a", "|short|detailed", "caption for this video."),
    "Please describe the video.",
    "Can you describe the video?",
    "Please provide a detailed description of the video.",
    "Please provide a detailed description of the video, focusing on the main subjects, their actions, "
    "and the background scenes.",
    "Describe this video in detail: who or what is seen, what they do and in which order, the place, the light "
    "and how the camera moves. Say only what can be seen.",
    "Summarize the video.",
    "What do you see?",
    "What do you see in this video?",
    "What does the video show?",
    "What is this video about?",
)

QUESTIONS = (
    QuestionKind("describe", "video", _STORY),
    QuestionKind("happens", "video", (
        "What happens in this video?", "What happens in the video?", "What happens?", "What happens here?",
        "What is happening?", "What is happening in this video?", "What is going on?",
        "What is going on in this video?",
    )),
    QuestionKind("shape", "video", (
        "What shape is it?", "What shape is in the video?", "What shape do you see?", "Which shape is it?",
        "What is the shape?", "What kind of shape is it?", "What shape is shown?", "Name the shape.",
        "What shape moves?",
    )),
    QuestionKind("color_start", "video", (
        "What color is it at the start?",
        *_all("What|Which", "color", "is it|is the shape|does it have", "at the start?|at the beginning?|at first?"),
        "What is its color at the start?", "What is the color at the start?", "What is the first color?",
        "What color is it in the first frame?", "What color does it start with?",
    )),
    QuestionKind("color_end", "video", (
        "What color is it at the end?",
        *_all("What|Which", "color", "is it|is the shape|does it have", "at the end?|in the end?|at last?"),
        "What is its color at the end?", "What is the color at the end?", "What is the last color?",
        "What color is it in the last frame?", "What color does it end with?",
    )),
    QuestionKind("direction", "video", (
        "Which way does it move?", "Which way does it go?", "Which way does the shape move?",
        "Which direction does it move?", "In which direction does it move?", "In what direction does it move?",
        "What direction does it move in?", "Where does it go?", "Where does it move?", "How does it move?",
        "What is its direction?",
    )),
    QuestionKind("change", "video", (
        "Does the color change?", "Does its color change?", "Does it change color?", "Does it change its color?",
        "Does the shape change color?", "Does the color of the shape change?", "Is there a change of color?",
    )),
    QuestionKind("moves", "video", (
        "Does it move?", "Is it moving?", "Does the shape move?", "Does it stay still?",
    )),
    QuestionKind("color", "video", (
        "What color is it?", "What is the color?", "What color is the shape?", "Which color is it?",
    )),
    QuestionKind("picture_shape", "picture", (
        "What shape is it?", "What shape is in the picture?", "What shape do you see?", "Which shape is it?",
        "What is the shape?", "What kind of shape is it?", "What shape is shown?", "Name the shape.",
    )),
    QuestionKind("picture_color", "picture", (
        "What color is it?", "What is the color?", "What is its color?", "What color is the shape?",
        "Which color is it?", "What color is the shape in the picture?", "Which color does it have?",
    )),
    QuestionKind("picture_describe", "picture", (
        "Describe the picture.", *_all("Describe", "the|this", "picture|image", "in detail.|in one sentence."),
        *_all("Describe", "the|this", "picture.|image."), "What do you see?", "What is in the picture?",
        "What is in this image?", "What does the picture show?", "Caption this image.",
    )),
    QuestionKind("same_shape", "both", (
        "Is it the same shape?", "Is the shape the same?", "Are the shapes the same?", "Do they show the same shape?",
        "Is it the same shape in the picture and in the video?",
        "Is the shape in the picture the same as in the video?",
    )),
    QuestionKind("same_color", "both", (
        "Is it the same color?", "Is the color the same?", "Are the colors the same?", "Do they have the same color?",
        "Is it the same color in the picture and in the video?",
        "Is the color in the picture the same as in the video?",
    )),
)  # fmt: skip
BY_KIND = {question.kind: question for question in QUESTIONS}

# Questions of yes or no: the wording of each kind, and the claims that it is asked about.
CLAIM_QUESTIONS = {"shows": "Does the video show {}?", "claim": "In the video, {}. Yes or no?"}
CLAIMS = {
    "shows": (
        "a {shape}", "something {color}", "a {color} {shape}", "a {shape} that {motion}", "something that {motion}",
        "a {color} {shape} that {motion}", "something that changes color", "a {shape} that changes color",
        "something that turns {end}", "a {shape} that turns {end}", "a {start} {shape} that turns {end}",
    ),
    "claim": (
        "there is a {shape}", "there is a {color} {shape}", "the shape is a {shape}",
        "the shape is {start} at the start", "the shape is {end} at the end",
        "a {shape} {motion}", "a {color} {shape} {motion}", "the shape {motion}", "something {motion}",
        "nothing moves", "something moves", "the shape moves", "the shape changes color", "a {shape} changes color",
        "something changes color", "nothing changes color", "the shape turns {end}", "something turns {end}",
        "a {shape} turns {end}", "a {start} {shape} turns {end}",
    ),
}  # fmt: skip


def claim(kind: str, scene: Scene, rng: np.random.Generator, without: tuple[str, ...] = ()) -> str:
    """A random claim about the scene for that kind of question: half are true, the others wrong in one word.

    Claims that have a word of `without` are not drawn.
    """
    wanted = rng.random() < 0.5
    allowed = [one for one in CLAIMS[kind] if not any(word in one for word in without)]
    colors = (*COLORS, *(scene.color_start, scene.color_end) * 2)  # wrong colours are often the scene's other one
    values = {
        "shape": SHAPES, "color": colors, "start": colors, "end": colors,
        "motion": tuple(_motion(direction) for direction in DIRECTIONS),
    }  # fmt: skip
    while True:
        pattern = str(allowed[rng.integers(len(allowed))])
        facts = {
            "shape": scene.shape, "start": scene.color_start, "end": scene.color_end,
            "color": (scene.color_start, scene.color_end)[rng.integers(2)], "motion": _motion(scene.direction),
        }  # fmt: skip
        slots = re.findall(r"{(\w+)}", pattern)
        if slots and not wanted:
            slot = str(slots[rng.integers(len(slots))])
            facts[slot] = str(values[slot][rng.integers(len(values[slot]))])
        text = pattern.format(**facts)
        if "{start}" in pattern and "turns" in pattern and facts["start"] == facts["end"]:
            continue  # "a red circle turns red"
        if holds(text, scene) == wanted:
            return text


def holds(text: str, scene: Scene) -> bool:
    """Whether a claim of `CLAIMS`, or a question about it, is true of the scene."""
    return all(true for _, true in judged(text, scene))


def judged(text: str, scene: Scene) -> list[tuple[int, bool]]:
    """The words that decide a claim: where each one ends in the text, and whether it is true of the scene.

    A colour is the scene's first or last one, unless the claim says which.
    """
    start, end, moves = scene.color_start, scene.color_end, scene.direction != "still"
    nothing, at = "nothing" in text.lower(), re.search(r" at the (start|end)", text)
    verdicts = []
    before = ""
    for match in re.finditer(r"[a-z]+", text.lower()):
        word = match[0]
        if word in SHAPES:
            verdicts.append((match.end(), word == scene.shape))
        elif word in COLORS and before == "turns":
            verdicts.append((match.end(), scene.changes and word == end))
        elif word in COLORS and at:
            verdicts.append((at.end(), word == (start if at[1] == "start" else end)))
        elif word in COLORS:
            verdicts.append((match.end(), word in (start, end)))
        elif word in ("changes", "turns"):
            verdicts.append((match.end(), scene.changes != nothing))
        elif word == "moves":
            verdicts.append((match.end(), moves != nothing))
        elif word in DIRECTIONS:
            verdicts.append((match.end(), word == scene.direction))
        before = word
    return verdicts


def worded(kind: str, rng: np.random.Generator, *, plain: float = 0.4, about: str = "") -> str:
    """A random wording: the main one with the probability `plain`, else any of them, also with British spelling.

    The kinds of `CLAIM_QUESTIONS` ask `about` a claim.
    """
    wordings = (CLAIM_QUESTIONS[kind].format(about),) if kind in CLAIM_QUESTIONS else BY_KIND[kind].wordings
    if rng.random() < plain:
        return wordings[0]
    text = str(wordings[rng.integers(len(wordings))])
    if rng.random() < 0.35:
        text = text.replace("color", "colour")
    if rng.random() < 0.2:
        text = text[:-1]
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    return text


def right_answer(kind: str, scene: Scene, text: str = "", picture: Scene | None = None) -> str:
    """The sentence that answers that question about the scene (and, for `same_...`, the picture)."""
    if kind in CLAIM_QUESTIONS:
        return "Yes." if holds(text, scene) else "No."
    shape, start, end, motion = scene.shape, scene.color_start, scene.color_end, _motion(scene.direction)
    if kind in ("same_shape", "same_color"):
        assert picture is not None, f"{kind} needs a picture"
        is_shape = kind == "same_shape"
        there, here = (picture.shape, shape) if is_shape else (picture.color_start, start)
        verdict = "yes" if there == here else "no"
        # Both are named before the verdict: a small model hardly learns to compare if it has to begin with yes or no.
        if is_shape:
            return f"The picture shows a {there} and the video shows a {here}: {verdict}."
        return f"The picture is {there} and the video is {here}: {verdict}."
    story = f"A {start} {shape} {motion}" + (f" and turns {end}." if scene.changes else ".")
    agrees = (scene.direction == "still") == ("still" in text)
    return {
        "describe": story,
        "happens": story,
        "shape": f"It is a {shape}.",
        "picture_shape": f"It is a {shape}.",
        "color_start": f"It starts {start}.",  # with "It is" a small model never learns how start and end differ
        "color_end": f"It ends {end}.",
        "direction": f"It {motion}.",
        "change": f"Yes, it changes from {start} to {end}." if scene.changes else f"No, it stays {start}.",
        "moves": f"{'Yes' if agrees else 'No'}, it {motion}.",
        "color": f"It starts {start} and ends {end}." if scene.changes else f"It is {start}.",
        "picture_color": f"It is {start}.",
        "picture_describe": f"A {start} {shape}.",
    }[kind]


def is_right(kind: str, scene: Scene, answer: str, text: str = "", picture: Scene | None = None) -> bool:
    """Whether the answer has the same key words as the right one.

    Key words are shapes, colours (in their order), directions, yes and no; for comparisons and claims only yes and no.
    """
    expected = right_answer(kind, scene, text, picture)
    if kind.startswith("same_") or kind in CLAIM_QUESTIONS:
        return _words(answer, ("yes", "no")) == _words(expected, ("yes", "no"))
    key_words = ("yes", "no", *SHAPES, *COLORS, *DIRECTIONS)
    return sorted(_words(answer, key_words)) == sorted(_words(expected, key_words)) and (
        _words(answer, tuple(COLORS)) == _words(expected, tuple(COLORS))
    )


def _motion(direction: str) -> str:
    return "stays still" if direction == "still" else f"moves {direction}"


def _words(text: str, wanted: tuple[str, ...]) -> list[str]:
    """The wanted words that the text has, in their order, each once."""
    return list(dict.fromkeys(word for word in re.findall(r"[a-z]+", text.lower()) if word in wanted))
