"""Answers that fit a schema: their speed beside free ones, how long a new schema takes, and 200 random ones.

    python tests/benchmarks/schema.py [--parts speed start random hostile] [--rounds 5] [--count 200]
        [--model CHECKPOINT] [--tokenizers FOLDER...]

`speed` takes 118 M random parameters in the layout of the 7B, if no checkpoint is named. `random` takes random weights
in each published layout. Folders of tokenizers are walked at random without a model. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoints import make_checkpoint
from engine import random_checkpoint
from scenes import moving_square
from schemas import HOSTILE, Schemas, fault

from llava_video_cli import Generation, LlvidError, Model, Request, Turn, open_model
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.inference.constraints import Constraint, Grammars, Vocabulary
from llava_video_cli.inference.detokenizer import token_bytes

PARTS = ("speed", "start", "random", "hostile")
VIDEO = moving_square(1)
# Long free texts between names: much of what a caption as JSON is.
CAPTION = {
    "type": "object",
    "properties": {
        "caption": {"type": "string", "minLength": 4000},
        "objects": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["caption", "objects"],
    "additionalProperties": False,
}


def asked(tokens: int, seed: int, schema: Any = None) -> Request:
    text = None if schema is None else json.dumps(schema)
    return Request((Turn("user", "Describe it.", (VIDEO,)),), Generation(tokens, 1.0, seed=seed, schema=text))


def speed(model: Model, rounds: int) -> dict[str, Any]:
    """Measure answers of equal length, free and constrained in turns: tokens a second, and the processor's seconds.

    Where other work takes the cores, the processor's seconds count, above all those of the engine's thread: with
    OMP_NUM_THREADS=1 it does all of a step.
    """
    figures: dict[str, Any] = {}
    for rows in (1, 8):
        rates: dict[str, list[float]] = {"free": [], "schema": [], "schemas": []}
        costs: dict[str, list[float]] = {kind: [] for kind in rates}
        steps: dict[str, list[float]] = {kind: [] for kind in rates}
        for number in range(rounds + 1):
            for kind in rates:
                schemas = [None if kind == "free" else CAPTION for _ in range(rows)]
                if kind == "schemas":  # one for each row
                    schemas = [{**CAPTION, "title": str(row)} for row in range(rows)]
                requests = [asked(96, number * 100 + row, schema) for row, schema in enumerate(schemas)]
                began, step_began = time.process_time(), engine_seconds()
                answers = model.answer_all(requests)
                cost, steps_took = time.process_time() - began, engine_seconds() - step_began
                usages = [answer.usage for answer in answers]
                assert all(answer.finish_reason == "length" for answer in answers)
                seconds = max(each.total_seconds for each in usages) - max(each.first_token_seconds for each in usages)
                if number:  # the first round warms up
                    rates[kind].append(sum(each.generated_tokens - 1 for each in usages) / seconds)
                    costs[kind].append(cost)
                    steps[kind].append(steps_took)
        figures[f"{rows} rows"] = {
            kind: {
                "tokens_per_second": round(statistics.median(rates[kind]), 1),
                "of_free": round(statistics.median(map(float.__truediv__, rates[kind], rates["free"])), 3),
                "processor_of_free": round(statistics.median(map(float.__truediv__, costs[kind], costs["free"])), 3),
                "engine_of_free": round(statistics.median(map(float.__truediv__, steps[kind], steps["free"])), 3),
            }
            for kind in rates
        }
        print(f"{rows} rows", figures[f"{rows} rows"], flush=True)
    return figures


def engine_seconds() -> float:
    """Return the processor's seconds of the engine's thread so far."""
    engine = next((each for each in threading.enumerate() if each.name == "llvid-engine"), None)
    if engine is None or engine.ident is None:
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(engine.ident))


def start(grammars: Callable[[], Grammars]) -> dict[str, float]:
    """Measure how long a schema takes until its first token may be chosen, in milliseconds of a processor.

    The tree of the vocabulary is made while the weights are read.
    """
    began, new, again = time.thread_time(), list[float](), list[float]()
    made = grammars()
    tree = time.thread_time() - began
    first = _begin(made, {"type": "object"})[1]
    for seed in range(100):
        schema = Schemas(seed).draw()
        new.append(_begin(made, schema)[1])
        again.append(_begin(made, schema)[1])
    figures = {"tree": tree, "first_of_the_model": first, "new": statistics.median(new), "slowest_new": max(new)}
    return {name: round(1000 * value, 2) for name, value in {**figures, "again": statistics.median(again)}.items()}


def _begin(made: Grammars, schema: Any) -> tuple[Constraint, float]:
    """Return the constraint of an answer, and the processor's seconds until its first token may be chosen."""
    began = time.thread_time()
    constraint = made.constraint(asked(1, 0, schema).generation)
    assert constraint is not None
    _next(constraint, _mask(made))
    return constraint, time.thread_time() - began


def _mask(made: Grammars) -> NDArray[np.int32]:
    return np.zeros(-(-made.size // 32), np.int32)


def _next(constraint: Constraint, mask: NDArray[np.int32]) -> tuple[NDArray[np.int64], float]:
    """Return the tokens that may come next, and the processor's seconds that it took to find them."""
    began = time.thread_time()
    constraint.fill(mask.ctypes.data, mask.nbytes)
    seconds = time.thread_time() - began
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")), seconds


def random_schemas(model: Model, count: int, name: str) -> dict[str, Any]:
    """Answer random schemas, with rows without one between them; none that ended by itself may fail."""
    schemas = [Schemas(seed).draw() for seed in range(count)]
    requests = [asked(400, seed, schema) for seed, schema in enumerate(schemas)]
    free = [asked(20, seed) for seed in range(count // 10)]
    answers = model.answer_all([*requests, *free])
    faults = [
        problem
        for answer, schema in zip(answers, schemas, strict=False)
        if answer.finish_reason == "stop" and (problem := fault(answer.text, schema))
    ]
    ended = sum(answer.finish_reason == "stop" for answer in answers[:count])
    print(name, f"{ended} of {count} ended, {len(faults)} faults", *faults[:3], flush=True)
    assert not faults
    return {"ended": ended, "cut": count - ended, "faults": len(faults)}


def walks(folder: Path, count: int) -> dict[str, Any]:
    """Choose tokens at random among those that may come next, with a tokenizer alone."""
    made, stop_id = _grammars(folder)()
    ended, faults, steps = 0, list[str](), list[float]()
    for seed in range(count):
        draw, schema, ids = random.Random(seed), Schemas(seed).draw(), list[int]()
        constraint = made.constraint(asked(1, 0, schema).generation)
        assert constraint is not None
        mask = _mask(made)
        while len(ids) < 400 and not constraint.is_complete:
            numbers, seconds = _next(constraint, mask)
            steps.append(seconds)
            ids.append(int(draw.choice(numbers)))
            constraint.take(ids[-1])
        if constraint.is_complete:
            ended += 1
            text = made.decode([number for number in ids if number != stop_id]).removeprefix(made.opening)
            faults += [problem] if (problem := fault(text, schema)) else []
    print(folder, f"{ended} of {count} ended, {len(faults)} faults", *faults[:3], flush=True)
    assert not faults
    return {"ended": ended, "faults": len(faults), "mask_ms": round(1000 * statistics.mean(steps), 3)}


def _grammars(folder: Path) -> Callable[[], tuple[Grammars, int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)

    def make() -> tuple[Grammars, int]:
        tokens = token_bytes(tokenizer, len(tokenizer))
        return Grammars(Vocabulary(tokens, [tokenizer.eos_token_id]), " "), tokenizer.eos_token_id

    return make


def hostile(made: Grammars) -> dict[str, Any]:
    """Measure what a stranger's schema takes: to begin, and in 200 steps."""
    figures = {}
    for name, (schema, _) in HOSTILE.items():
        before, began, slowest, problem = _peak_mib(), time.thread_time(), 0.0, ""
        try:
            constraint, building = _begin(made, schema)
            mask = _mask(made)
            for _ in range(200):
                numbers, seconds = _next(constraint, mask)
                slowest = max(slowest, seconds)
                if constraint.failure is not None or not len(numbers):
                    problem = str(constraint.failure or "")
                    break
                constraint.take(int(numbers[-1]))
        except LlvidError as error:
            building, problem = time.thread_time() - began, str(error)
        figures[name] = {
            "begin_ms": round(1000 * building, 1), "slowest_step_ms": round(1000 * slowest, 1),
            "more_mib": _peak_mib() - before,
        }  # fmt: skip
        print(f"{name:24}", figures[name], problem[:90], flush=True)
    return figures


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--model")
    parser.add_argument("--tokenizers", nargs="*", default=(), type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        vicuna = make_checkpoint(Path(temporary) / "vicuna", "vicuna")
        if "speed" in options.parts:
            name = options.model or str(random_checkpoint(Path(temporary)))
            results["speed"] = speed(open_model(name), options.rounds)
        for folder in (CHECKPOINT, vicuna, *options.tokenizers):
            make = _grammars(folder)
            if "start" in options.parts:
                results[f"start {folder.name}"] = start(lambda make=make: make()[0])  # type: ignore[misc]
                print(folder.name, results[f"start {folder.name}"], flush=True)
            if "random" in options.parts:
                results[f"walks {folder.name}"] = walks(folder, options.count)
        for layout in ("demo", "vicuna", "mistral", "yi") if "random" in options.parts else ():
            path = CHECKPOINT if layout == "demo" else make_checkpoint(Path(temporary) / f"r-{layout}", layout)
            results[f"random {layout}"] = random_schemas(open_model(str(path)), options.count, layout)
        if "hostile" in options.parts:
            results["hostile"] = hostile(_grammars(options.tokenizers[0] if options.tokenizers else vicuna)()[0])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
