"""4 bits on a CPU beside bfloat16: the first token, each later one, and what was forecast.

    python tests/benchmarks/four_bits.py [--size 1B] [--frames 8] [--runs 5]

Random weights, and as many frames of noise as are asked for; 8 make about 1,160 tokens of prompt. Both precisions are
loaded in one process and take turns; the first answer of each, which finds the layers as loading left them, is told
apart. Medians of seconds by the clock, and of processor seconds of all threads, which count little of what other work
takes; GNU OpenMP's threads don't spin meanwhile, so that waiting is no processor time. With OMP_NUM_THREADS=1 the
forecast can be compared with processor seconds, too. Wanted: the first token in 4 bits within 1.5 times bfloat16, a
later one not slower, a forecast within a factor of 1.5. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llava_video_cli.model import Quantize

WAYS: dict[str, Quantize] = {"bfloat16": "none", "4bit": "4bit"}
NEW_TOKENS = 16


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1B")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if os.environ.get("GOMP_SPINCOUNT") != "0":  # read as the library is loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GOMP_SPINCOUNT": "0"})
    import torch

    from llava_video_cli import Loading
    from llava_video_cli.checkpoint.random_weights import random_folder
    from llava_video_cli.inference.loader import load
    from llava_video_cli.inference.speed import estimate_speed, measure_rates

    folder = random_folder(f"random:{options.size}")
    assert folder is not None
    opened: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    for way, quantize in WAYS.items():
        opened[way], loading = timed(partial(load, folder, Loading(quantize=quantize, dtype="bfloat16", device="cpu")))
        rows[way] = {"load": loading}
    found: dict[str, dict[str, list[Any]]] = {way: {"first": [], "later": [], "forecast": []} for way in WAYS}
    for run in range(options.runs + 1):
        for way, loaded in opened.items():
            first, later = answer(loaded.model, options.frames)
            told = estimate_speed(loaded.checkpoint, measure_rates(loaded.placement), options.frames)
            print(run, way, first, later, told, file=sys.stderr, flush=True)
            if run == 0:
                rows[way]["very_first"] = first
                continue
            found[way]["first"].append(first)
            found[way]["later"].append(later)
            found[way]["forecast"].append((told.first_seconds, told.token_seconds))
    for way, values in found.items():
        for name, pairs in values.items():
            rows[way][name] = [round(statistics.median(each), 4) for each in zip(*pairs, strict=True)]
        for place, name in enumerate(("clock", "processor")):
            taken = (rows[way]["first"][place], rows[way]["later"][place])
            rows[way][f"forecast_over_{name}"] = ratio(rows[way]["forecast"], taken)
    ratios = {name: ratio(rows["4bit"][name], rows["bfloat16"][name]) for name in ("very_first", "first", "later")}
    setting = {"size": options.size, "frames": options.frames, "threads": torch.get_num_threads()}
    setting |= {"load_average": os.getloadavg()[0]}
    print(json.dumps(setting | rows | {"over_bfloat16": ratios}))


def ratio(upper: Sequence[float], lower: Sequence[float]) -> list[float]:
    """Return the quotients of two rows of figures."""
    return [round(a / b, 2) for a, b in zip(upper, lower, strict=True)]


def answer(model: Any, frames: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the seconds to the first token, and those for a later one: by the clock, and of the processor."""
    import torch

    config = model.config
    side, dtype = config.vision_config.image_size, model.dtype
    pixels = torch.rand((frames, 3, side, side), dtype=dtype)
    with torch.inference_mode():

        def begin() -> Any:
            patches = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
            tokens = frames * patches.shape[1] // config.spatial_pool_stride**2
            embeddings = torch.randn((1, tokens, config.text_config.hidden_size), dtype=dtype)
            told = model.model.language_model(inputs_embeds=embeddings, use_cache=True)
            model.lm_head(told.last_hidden_state[:, -1:])
            return told.past_key_values

        def go_on() -> None:
            row = torch.randn((1, 1, config.text_config.hidden_size), dtype=dtype)
            for _ in range(NEW_TOKENS):
                told = model.model.language_model(inputs_embeds=row, past_key_values=cache, use_cache=True)
                model.lm_head(told.last_hidden_state)

        cache, first = timed(begin)
        _, later = timed(go_on)
    return first, (later[0] / NEW_TOKENS, later[1] / NEW_TOKENS)


def timed(call: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Return what a call returns, and its seconds: by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    returned = call()
    return returned, (round(time.perf_counter() - clock, 4), round(time.process_time() - processor, 4))


if __name__ == "__main__":
    main()
