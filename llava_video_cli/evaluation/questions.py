"""Question sets: a question about a video, its choices and the right one; files of one's own, and the demo's world."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from ..errors import UsageError
from ..system.files import cache_folder, whole_file
from ..validation import Shape, Text, brief, read_fields, read_lines
from ..video.files import may_be_media
from ..video.sampling import Sampling
from .extraction import Extraction, ranked_letter, same_text, yes_or_no

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
YES_NO = ("yes", "no")
_SHAPE: Shape = {
    "id": str | int, "video": Text, "question": Text, "choices": list[str], "answer": str | int, "group": str,
    "start": int | float, "end": int | float,
}  # fmt: skip
_DEMO_SIDE = 480  # pixels of the longer side


@dataclass(frozen=True)
class Question:
    """A question about a video.

    `prompt` is the whole text of the turn. The answer is one of `choices` (letters, or yes and no), or a text, if there
    are none. `options` are what the letters stand for. `group` is the kind of question, `duration` what the set says
    about the video's length. The part `[start_seconds, end_seconds)` is looked at.
    """

    id: str
    video: str
    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    group: str = ""
    duration: str = ""
    start_seconds: float | None = None
    end_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.choices and self.answer not in self.choices:
            raise UsageError(f"the answer {self.answer!r} is none of {', '.join(self.choices)}")
        self.part_of(Sampling())

    def part_of(self, sampling: Sampling) -> Sampling:
        """Return a sampling of the part that is looked at. Raises `UsageError` for times that no part has."""
        if self.start_seconds is None and self.end_seconds is None:
            return sampling
        return replace(sampling, start_seconds=self.start_seconds or 0.0, end_seconds=self.end_seconds)


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and how they are asked: `frames` of a video (None: the preset's), at most `max_new_tokens`.

    `extract` reads the choice out of a written answer; `source` says where the protocol is from.
    """

    name: str
    questions: tuple[Question, ...]
    extract: Extraction
    frames: int | None = None
    max_new_tokens: int = 16
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of all prompts, in their order: two scores with the same one were asked the same."""
        whole = hashlib.sha256()
        for question in self.questions:
            whole.update(question.prompt.encode() + b"\0")
        return whole.hexdigest()


def lettered(options: Sequence[str], form: str = "{letter}. {option}") -> str:
    """Return options as lines, each with its letter."""
    return "\n".join(
        form.format(letter=letter, option=option) for letter, option in zip(ascii_uppercase, options, strict=False)
    )


def read_questions(path: Path) -> QuestionSet:
    """Read a file of questions, a JSON object per line: `video`, `question`, and `choices` with `answer`, or `answer`.

    Videos are relative to the file's folder. `answer` is one of the choices, its letter, or its index from 0. Choices
    other than yes and no are asked by letters. Raises UsageError for the first line that is not understood.
    """
    questions = tuple(read_lines(path, lambda values, number: _question(values, number, path.parent)))
    if not questions:
        raise UsageError(f"{path}: there is no question in it")
    return QuestionSet(path.stem, questions, any_choice)


def any_choice(text: str, question: Question) -> str | None:
    """Return the letter, the yes or no, or the text of an answer, whichever the question wants."""
    if not question.choices:
        return question.answer if same_text(text, question.answer) else text
    if {choice.lower() for choice in question.choices} == set(YES_NO):
        return yes_or_no(text, question)
    return ranked_letter(text, question)


def demo_questions(count: int, seed: int = 0, folder: Path | None = None) -> QuestionSet:
    """Make clips of the demo's world and ask one question of yes or no about each; the same ones for the same seed.

    The clips lie in a folder of the user's cache (about 20 kB each), and are made once.
    """
    import numpy as np

    from ..demo.questions import CLAIM_QUESTIONS, claim, holds
    from ..demo.world import random_scene, write_clip

    folder = folder or cache_folder() / "eval-demo"
    folder.mkdir(parents=True, exist_ok=True)
    questions = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        scene = random_scene(rng, largest_side=_DEMO_SIDE, longest_seconds=4.0)
        clip = folder / f"{seed}-{number:04d}.mp4"
        if not clip.exists():
            with whole_file(clip) as temporary:
                write_clip(temporary, scene)
        kind = list(CLAIM_QUESTIONS)[number % len(CLAIM_QUESTIONS)]
        text = claim(kind, scene, rng)
        answer = "Yes" if holds(text, scene) else "No"
        prompt = CLAIM_QUESTIONS[kind].format(text)
        questions.append(Question(str(number), str(clip), prompt, answer, ("Yes", "No"), group=kind))
    return QuestionSet("demo", tuple(questions), yes_or_no, notes=("made of the demo checkpoint's world",))


def _question(values: dict[str, Any], number: int, folder: Path) -> Question:
    read_fields(values, _SHAPE)
    for key in ("video", "question", "answer"):
        if key not in values:
            raise UsageError(f"the key {key!r} is missing")
    options, answer = tuple(values.get("choices", ())), values["answer"]
    common: dict[str, Any] = {
        "id": str(values.get("id", number)),
        "video": str(folder / values["video"]),
        "group": values.get("group", ""),
        "start_seconds": values.get("start"),
        "end_seconds": values.get("end"),
    }
    if not options:
        is_open = str(answer).lower() not in YES_NO
        choices = () if is_open else YES_NO
        return Question(
            prompt=values["question"], answer=str(answer) if is_open else answer.lower(), choices=choices, **common
        )
    if {option.lower() for option in options} == set(YES_NO):
        by_name = {option.lower(): option for option in options}
        right = by_name.get(str(answer).lower())
        if right is None:
            raise UsageError(f"the answer {brief(answer)} is none of {', '.join(options)}")
        return Question(prompt=values["question"], answer=right, choices=options, **common)
    prompt = f"{values['question']}\n{lettered(options)}\n{LETTER_PROMPT}"
    letters = tuple(ascii_uppercase[: len(options)])
    return Question(prompt=prompt, answer=right_letter(answer, options), choices=letters, options=options, **common)


def right_letter(answer: str | int, options: Sequence[str]) -> str:
    """Return the letter of an answer that is an option, its letter, or its index from 0; raises UsageError."""
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise UsageError(f"there must be from 2 to {len(ascii_uppercase)} choices, got {len(options)}")
    letters = ascii_uppercase[: len(options)]
    if isinstance(answer, str):
        if answer in options:
            return letters[list(options).index(answer)]
        bare = answer.strip().strip("().")
        if bare in map(str, range(len(options))):
            answer = int(bare)
        elif len(bare) == 1 and bare.upper() in letters:
            return bare.upper()
        else:
            matching = [each for each in zip(letters, options, strict=True) if same_text(each[1], answer)]
            if len(matching) == 1:
                return matching[0][0]
    if isinstance(answer, int) and 0 <= answer < len(options):
        return letters[answer]
    raise UsageError(
        f"the answer {brief(answer)} is none of the {len(options)} choices, nor a letter or an index of one"
    )


def located(videos: dict[str, str], name: str) -> str | None:
    """Return the path of a video that a set names, with or without its ending, from `videos_below`."""
    return (
        videos.get(name.casefold()) or videos.get(Path(name).name.casefold()) or videos.get(Path(name).stem.casefold())
    )


def videos_below(folder: Path) -> dict[str, str]:
    """Return the files below a folder by their relative path, name and stem; the first one found keeps a name."""
    found: dict[str, str] = {}
    for path in _files(folder):
        relative = path.relative_to(folder)
        for name in (relative.as_posix(), path.name, path.stem):
            found.setdefault(name.casefold(), str(path))
    return found


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if may_be_media(path.suffix.lower()) and path.is_file())
