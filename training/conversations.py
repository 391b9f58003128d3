"""Training conversations as token ids: a prefix with the media, then many conversations that share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llava_video_cli.demo.questions import CLAIM_QUESTIONS, claim, holds, judged, right_answer, worded
from llava_video_cli.demo.world import Scene

from .architecture import SYSTEMS, media_id

# The share of each kind of question about a video. Directions take the longest to learn; then start and end.
SHARES = {
    "direction": 0.20,
    "describe": 0.16,
    "happens": 0.08,
    "shape": 0.08,
    "color_start": 0.13,
    "color_end": 0.14,
    "change": 0.09,
    "moves": 0.06,
    "color": 0.06,
}
CLAIM_SHARES = {"shows": 0.12, "claim": 0.12}  # besides those in batches of their own
LOWERCASE = 0.1  # the share of answers "yes" and "no", so that these words are as likely among themselves as Yes and No
PICTURE_SHARES = {"picture_shape": 0.4, "picture_color": 0.3, "picture_describe": 0.3}


@dataclass(frozen=True)
class Dialogue:
    """A conversation after the prefix: token ids, which of them are answers, and the kind of its first question.

    `facts` says of the tokens that decide a claim (by their place in `ids`) whether they are true of the scene.
    """

    kind: str
    ids: list[int]
    answers: list[bool]
    facts: dict[int, bool] = field(default_factory=dict)

    def add(
        self,
        tokenizer: PreTrainedTokenizerFast,
        before: str,
        text: str,
        answer: str,
        facts: Sequence[tuple[int, bool]] = (),
    ) -> None:
        """Append a question and its answer; `facts` are `judged`'s of the text, which comes after `before`."""
        true = {len(before) + end: is_true for end, is_true in facts}
        question = tokenizer(f"{before}{text} ASSISTANT:", add_special_tokens=False, return_offsets_mapping=True)
        for token, (_, end) in zip(question["input_ids"], question["offset_mapping"], strict=True):
            if end in true:
                self.facts[len(self.ids)] = true[end]
            self.ids.append(token)
            self.answers.append(False)
        learned = tokenizer(f" {answer}</s>", add_special_tokens=False)["input_ids"]
        self.ids.extend(learned)
        self.answers.extend([True] * len(learned))


@dataclass(frozen=True)
class Batch:
    """Several samples, each of them a prefix and its dialogues one after the other.

    ids and positions: int64 (samples, length). mask: bool (samples, 1, length, length), true where a token attends.
    targets: int64 (samples, length), -100 where nothing is learned. facts: int64 (samples, length), 1 where a word of
    a claim is true of the scene, 0 where it is not, -100 elsewhere. dialogue: int64 (samples, length), the number of
    the dialogue from 1 on, 0 for the prefix, -1 for padding. kinds: the kinds of each sample's dialogues.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    facts: Tensor
    dialogue: Tensor
    kinds: list[list[str]]


def prompt_prefix(
    tokenizer: PreTrainedTokenizerFast, media: Sequence[str], lengths: Sequence[int], rng: np.random.Generator
) -> list[int]:
    """The ids before the first question: a system prompt (often none), and a line of placeholders for each medium."""
    system = f"{SYSTEMS[rng.integers(len(SYSTEMS))]} " if rng.random() < 0.3 else ""
    lines = "".join(f"<{kind}>\n" for kind in media)
    ids: list[int] = []
    left = list(lengths)
    media_ids = {media_id(tokenizer, token) for token in ("<video>", "<image>")}
    for token in tokenizer(f"{system}USER: {lines}")["input_ids"]:
        ids += [token] * (left.pop(0) if token in media_ids else 1)
    return ids


def dialogue(
    tokenizer: PreTrainedTokenizerFast,
    kinds: Sequence[str],
    rng: np.random.Generator,
    scene: Scene,
    picture: Scene | None = None,
    note: str = "",
    lowercase: float = LOWERCASE,
) -> Dialogue:
    """Questions of these kinds in order, with their right answers; the note comes before the first question."""
    made = Dialogue(kinds[0], [], [])
    for turn, kind in enumerate(kinds):
        asks_claim = kind in CLAIM_QUESTIONS
        text = worded(kind, rng, plain=0.35, about=claim(kind, scene, rng) if asks_claim else "")
        answer = _either_case(right_answer(kind, scene, text, picture), rng, lowercase)
        facts = judged(text, scene) if asks_claim else []
        made.add(tokenizer, "USER: " if turn else note, text, answer, facts)
    return made


def claim_dialogues(
    tokenizer: PreTrainedTokenizerFast,
    scenes: Sequence[Scene],
    rng: np.random.Generator,
    count: int,
    without: tuple[str, ...],
) -> list[Dialogue]:
    """Dialogues of one claim each about a video that shows these scenes: true if it is true of one of them.

    Claims that have a word of `without` are not asked; nor is, about several scenes, what all of them decide.
    """
    if len(scenes) > 1:
        without = (*without, "the shape", "nothing")
    dialogues = []
    for _ in range(count):
        kind = str(rng.choice(list(CLAIM_QUESTIONS)))
        scene = scenes[int(rng.integers(len(scenes)))]
        text = worded(kind, rng, plain=0.35, about=claim(kind, scene, rng, without))
        answer = "Yes." if any(holds(text, one) for one in scenes) else "No."
        made = Dialogue(kind, [], [])
        facts = judged(text, scene) if len(scenes) == 1 else []
        made.add(tokenizer, "", text, _either_case(answer, rng, LOWERCASE), facts)
        dialogues.append(made)
    return dialogues


def video_dialogues(
    tokenizer: PreTrainedTokenizerFast,
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    frames: int,
    shares: dict[str, float],
) -> list[Dialogue]:
    """Dialogues about a video: mostly one question, sometimes two to four, rarely with the frames' times before."""
    names, weights = list(shares), np.array(list(shares.values()))
    dialogues = []
    for _ in range(count):
        turns = 1 if rng.random() < 0.8 else int(rng.integers(2, 5))
        kinds = [str(kind) for kind in rng.choice(names, turns, p=weights / weights.sum())]
        note = _times(rng, frames) if rng.random() < 0.04 else ""
        dialogues.append(dialogue(tokenizer, kinds, rng, scene, note=note))
    return dialogues


def picture_dialogues(
    tokenizer: PreTrainedTokenizerFast, scene: Scene, rng: np.random.Generator, count: int
) -> list[Dialogue]:
    """Dialogues about a picture."""
    dialogues = []
    for _ in range(count):
        turns = 1 if rng.random() < 0.8 else int(rng.integers(2, 4))
        kinds = [str(kind) for kind in rng.choice(list(PICTURE_SHARES), turns, p=list(PICTURE_SHARES.values()))]
        dialogues.append(dialogue(tokenizer, kinds, rng, scene))
    return dialogues


def pair_dialogues(
    tokenizer: PreTrainedTokenizerFast, scene: Scene, picture: Scene, rng: np.random.Generator, count: int
) -> list[Dialogue]:
    """Dialogues that compare a picture with a video; colours only if the video's colour does not change."""
    possible = ["same_shape"] if scene.changes else ["same_shape", "same_color"]
    dialogues = []
    for index in range(count):
        kinds = [possible[index % len(possible)]]
        if len(possible) > 1 and rng.random() < 0.2:
            kinds.append(possible[(index + 1) % len(possible)])
        dialogues.append(dialogue(tokenizer, kinds, rng, scene, picture))
    return dialogues


def join_dialogues(prefixes: list[list[int]], dialogues: list[list[Dialogue]], pad: int) -> Batch:
    """Put the samples in a batch, padded on the right.

    The dialogues of a sample do not attend to each other, and all begin at the position after the prefix.
    """
    lengths = [
        len(prefix) + sum(len(one.ids) for one in mine) for prefix, mine in zip(prefixes, dialogues, strict=True)
    ]
    shape = (len(prefixes), max(lengths))
    ids, positions = np.full(shape, pad), np.zeros(shape, np.int64)
    targets, facts, owner = np.full(shape, -100), np.full(shape, -100), np.full(shape, -1)
    for row, (prefix, mine) in enumerate(zip(prefixes, dialogues, strict=True)):
        at = len(prefix)
        ids[row, :at], positions[row, :at], owner[row, :at] = prefix, np.arange(at), 0
        for number, one in enumerate(mine, start=1):
            end = at + len(one.ids)
            ids[row, at:end], owner[row, at:end] = one.ids, number
            positions[row, at:end] = len(prefix) + np.arange(len(one.ids))
            learned = np.array(one.answers[1:])
            targets[row, at : end - 1] = np.where(learned, one.ids[1:], -100)
            for place, true in one.facts.items():
                facts[row, at + place] = true
            at = end
    dialogue_of = torch.as_tensor(owner)
    before = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    reachable = (dialogue_of[:, None, :] == dialogue_of[:, :, None]) | (dialogue_of[:, None, :] == 0)
    mask = (before & reachable)[:, None]
    kinds = [[one.kind for one in mine] for mine in dialogues]
    return Batch(
        torch.as_tensor(ids),
        torch.as_tensor(positions),
        mask,
        torch.as_tensor(targets),
        torch.as_tensor(facts),
        dialogue_of,
        kinds,
    )


def _either_case(answer: str, rng: np.random.Generator, lowercase: float) -> str:
    """The answer, with `yes` for `Yes` and `no` for `No` in the share `lowercase` of the cases."""
    begins = answer.startswith(("Yes", "No")) and rng.random() < lowercase
    return answer[0].lower() + answer[1:] if begins else answer


def _times(rng: np.random.Generator, frames: int) -> str:
    """A sentence with the frames' times, as a user or LLaVA-NeXT's own training data has it before a question."""
    seconds = rng.uniform(1, 10)
    digits = int(rng.integers(1, 3))
    times = [f"{index * seconds / frames:.{digits}f}" for index in range(frames)]
    marked = [f"{time}s" for time in times]
    styles = (
        f"The video lasts for {seconds:.2f} seconds, and {frames} frames are uniformly sampled from it. These frames "
        f"are located at {','.join(marked)}.Please answer the following questions related to this video. ",
        f"The frames are from {', '.join(times)} seconds. ",
        f"The frames are at {', '.join(f'{time} s' for time in times)}.\n",
        f"Frame times: {', '.join(marked)}.\n",
    )
    return styles[rng.integers(len(styles))]
