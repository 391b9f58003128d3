"""Random edits of conversations: what reuse of a prompt's beginning has to bear.

Run as a program, it makes ten thousand of them and compares each answer with that of a model which reuses nothing:
`python tests/edits.py [--edits N] [--seed S]`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from checkpoints import LAYOUTS, make_checkpoint
from scenes import moving_square, still

from llava_video_cli import Answer, Generation, Loading, Model, Picture, Request, Turn, join, open_model
from llava_video_cli.conversation import Media
from llava_video_cli.demo import CHECKPOINT

MEDIA: tuple[Media, ...] = (
    moving_square(2),
    moving_square(2, seed=3),
    moving_square(3, seed=7),
    still(height=20),
    still(seed=6, height=30),
)
QUESTIONS = ("What moves?", "What shape is it?", "Is it the same shape as before?", "Why?", "And then?")
SYSTEMS = (None, "Be brief.", "Be brief and kind.")
GREEDY = Generation(max_new_tokens=3)


def conversations(draw: random.Random, answer: Callable[[Request], str | None]) -> Iterator[Request]:
    """Yield a conversation after each of endlessly many edits; `answer` gives what its next turns go on from.

    One that does not fit the context, for which there is None, is left out and begun anew.
    """
    system: str | None = None
    turns: list[Turn] = []
    while True:
        edit = draw.choice(("ask", "ask", "ask", "undo", "retry", "swap", "copy", "system", "clear"))
        if edit == "undo":
            turns = turns[:-2]
        elif edit == "swap" and turns:
            at = 2 * draw.randrange(len(turns) // 2)
            turns[at] = replace(turns[at], media=tuple(draw.choice(MEDIA) for _ in turns[at].media))
        elif edit == "copy" and turns:
            at = 2 * draw.randrange(len(turns) // 2)
            turns[at] = replace(turns[at], media=tuple(copied(medium, draw) for medium in turns[at].media))
        elif edit == "system":
            system = draw.choice(SYSTEMS)
        elif edit == "clear" or len(turns) > 6:
            turns = []
        elif edit == "ask" or not turns:
            media = tuple(draw.sample(MEDIA, k=draw.choice((0, 0, 1, 1, 2)))) if turns else (draw.choice(MEDIA),)
            turns.append(Turn("user", draw.choice(QUESTIONS), media))
            turns.append(Turn("assistant", ""))
        if not turns:
            continue
        request = conversation(system, turns[:-1])
        text = answer(request)
        if text is None:
            turns = []
            continue
        turns[-1] = Turn("assistant", text)
        yield request


def conversation(system: str | None, turns: list[Turn]) -> Request:
    """The request of turns that end with a question."""
    opening = (Turn("system", system),) if system else ()
    return Request((*opening, *turns), GREEDY)


def copied(medium: Media, draw: random.Random) -> Media:
    """The same content as another object, or with its last frame changed."""
    if isinstance(medium, Picture):
        return replace(medium, pixels=medium.pixels.copy())
    images = medium.images.copy()
    if draw.random() < 0.5:
        images[-1] = images[-1][::-1]
    return replace(medium, images=np.ascontiguousarray(images))


def differences(reusing: Model, plain: Model, edits: int, draw: random.Random) -> tuple[list[Request], int, int]:
    """The requests that the two models answer in different words, and the tokens that were asked and reused."""
    wrong, tokens, reused = [], 0, 0
    answers: dict[int, Answer] = {}

    def answer(request: Request) -> str | None:
        if reusing.budget(request).left < 0:
            return None
        answers[id(request)] = join(reusing.stream(request))
        return answers[id(request)].text

    for _, request in zip(range(edits), conversations(draw, answer), strict=False):
        got = answers.pop(id(request))
        if got.text != join(plain.stream(request)).text:
            wrong.append(request)
        tokens, reused = tokens + got.usage.prompt_tokens, reused + got.usage.cached_tokens
    return wrong, tokens, reused


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edits", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folders = {layout: make_checkpoint(Path(name) / layout, layout) for layout in LAYOUTS} | {"demo": CHECKPOINT}
        for layout, folder in folders.items():
            models = [open_model(str(folder), Loading(prefix_reuse=reuse)) for reuse in (True, False)]
            draw = random.Random(f"{options.seed}/{layout}")
            wrong, tokens, reused = differences(models[0], models[1], options.edits // len(folders), draw)
            results[layout] = {"edits": options.edits // len(folders), "wrong": len(wrong), "reused": reused / tokens}
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main()
