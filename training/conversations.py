"""Training conversations as token ids: a prefix with the media, then many conversations that share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from llava_video_cli.demo.questions import right_answer, worded
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
PICTURE_SHARES = {"picture_shape": 0.4, "picture_color": 0.3, "picture_describe": 0.3}


@dataclass(frozen=True)
class Dialogue:
    """A conversation after the prefix: token ids, which of them are answers, and the kind of its first question."""

    kind: str
    ids: list[int]
    answers: list[bool]


@dataclass(frozen=True)
class Batch:
    """Several samples, each of them a prefix and its dialogues one after the other.

    ids and positions: int64 (samples, length). mask: bool (samples, 1, length, length), true where a token attends.
    targets: int64 (samples, length), -100 where nothing is learned. dialogue: int64 (samples, length), the number of
    the dialogue from 1 on, 0 for the prefix, -1 for padding. kinds: the kinds of each sample's dialogues.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
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
) -> Dialogue:
    """Questions of these kinds in order, with their right answers; the note comes before the first question."""
    ids: list[int] = []
    answers: list[bool] = []
    for turn, kind in enumerate(kinds):
        text = worded(kind, rng, plain=0.35)
        question = f"{'USER: ' if turn else note}{text} ASSISTANT:"
        answer = f" {right_answer(kind, scene, text, picture)}</s>"
        for part, learned in ((question, False), (answer, True)):
            new = tokenizer(part, add_special_tokens=False)["input_ids"]
            ids += new
            answers += [learned] * len(new)
    return Dialogue(kinds[0], ids, answers)


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
    targets, owner = np.full(shape, -100), np.full(shape, -1)
    for row, (prefix, mine) in enumerate(zip(prefixes, dialogues, strict=True)):
        at = len(prefix)
        ids[row, :at], positions[row, :at], owner[row, :at] = prefix, np.arange(at), 0
        for number, one in enumerate(mine, start=1):
            end = at + len(one.ids)
            ids[row, at:end], owner[row, at:end] = one.ids, number
            positions[row, at:end] = len(prefix) + np.arange(len(one.ids))
            learned = np.array(one.answers[1:])
            targets[row, at : end - 1] = np.where(learned, one.ids[1:], -100)
            at = end
    dialogue_of = torch.as_tensor(owner)
    before = torch.ones(shape[1], shape[1], dtype=torch.bool).tril()
    reachable = (dialogue_of[:, None, :] == dialogue_of[:, :, None]) | (dialogue_of[:, None, :] == 0)
    mask = (before & reachable)[:, None]
    kinds = [[one.kind for one in mine] for mine in dialogues]
    return Batch(torch.as_tensor(ids), torch.as_tensor(positions), mask, torch.as_tensor(targets), dialogue_of, kinds)


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
