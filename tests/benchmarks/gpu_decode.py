"""How fast answers are decoded: with a captured step, without, and by transformers' own generate.

    python tests/benchmarks/gpu_decode.py                                           # on a GPU: 7B, random weights
    python tests/benchmarks/gpu_decode.py --model random:tiny --frames 2 --new 40 --runs 1    # does it work?

Tokens a second count from the first token to the last, so that computing the prompt is left out; the ways take turns,
and the median counts. The limit is that of the memory: a step reads all weights of the language model but the
embeddings, at the speed measured for copying (bytes read and written). Beside it stands the limit with the KV cache of
all rows, which a step reads as well. Answers that are not the same as with the captured step are counted, with the part
of them that is the same: in 16 bits, random weights come near a tie now and then. The time to the first token is that
from a 720p file on disk, with the model loaded and the second time it is asked. Without a GPU nothing is captured, and
the same loop is measured. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `llvid caption` does, before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from clips import make_clip
from fakes import Replayed

from llava_video_cli import Frames, Generation, Loading, Request, Sampling, Turn, VideoInfo, read_frames
from llava_video_cli.checkpoint import locate
from llava_video_cli.inference.cuda_graph import cuda_graphs
from llava_video_cli.inference.families.llava_next_video import LlavaVideo
from llava_video_cli.inference.loader import Loaded, load

COPIED_BYTES = {"cuda": 1 << 31, "cpu": 1 << 28}
SIDE = 336  # pixels of a frame


class Stamps:
    """A streamer for `generate` that notes when tokens come."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        value.cpu()  # it waits for them, as whoever shows them does
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is held."""


def refuse(_: Callable[[], None]) -> Callable[[], None]:
    """As where a step can't be captured."""
    raise RuntimeError("not to be captured")


def noise(count: int, seed: int) -> Frames:
    """Frames as read from a video."""
    images = np.random.default_rng(seed).integers(0, 255, (count, SIDE, SIDE, 3), dtype=np.uint8)
    info = VideoInfo("clip.mp4", float(count), SIDE, SIDE, 1.0, "h264", 0)
    return Frames(images, tuple(map(float, range(count))), info, Sampling(frames=count))


def copied_bytes_per_second(device: torch.device) -> float:
    """The best of ten copies of one tensor to another, bytes read and written."""
    source = torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), 0.0
    for _ in range(10):
        wait(device)
        start = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = max(best, 2 * source.numel() / (time.perf_counter() - start))
    return best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_bytes(model: Any, tokens: int, rows: int) -> tuple[int, int]:
    """The bytes that a step reads: of weights, and of the cache of these rows with so many tokens each."""
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    weights = [weight for name, weight in decoder.named_parameters() if "embed_tokens" not in name]
    config = model.config.get_text_config()
    width = config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * head.weight.element_size()
    return sum(one.numel() * one.element_size() for one in (*weights, head.weight)), rows * tokens * a_token


def ours(model: LlavaVideo, requests: Sequence[Request]) -> tuple[float, list[str]]:
    """Tokens a second, and the answers."""
    answers = model.answer_all(requests)
    usages = [answer.usage for answer in answers]
    taken = max(usage.total_seconds for usage in usages) - usages[0].first_token_seconds
    return sum(usage.generated_tokens - 1 for usage in usages) / taken, [answer.text for answer in answers]


def theirs(loaded: Loaded, requests: Sequence[Request]) -> tuple[float, list[str]]:
    """The same of transformers' documented way."""
    processor, plain = loaded.processor, loaded.model
    content = [{"type": "video"}, {"type": "text", "text": requests[0].turns[-1].text}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    videos = [request.media[0].images for request in requests if isinstance(request.media[0], Frames)]
    inputs = processor(text=[text] * len(videos), videos=videos, return_tensors="pt", do_sample_frames=False)
    inputs = inputs.to(plain.device, plain.dtype)
    stamps = Stamps()
    new = requests[0].generation.max_new_tokens
    output = plain.generate(**inputs, max_new_tokens=new, do_sample=False, use_cache=True, streamer=stamps)
    ids = output[:, inputs["input_ids"].shape[1] :]
    texts = [processor.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
    return len(ids) * (ids.shape[1] - 1) / (stamps.at[-1] - stamps.at[1]), texts


def same_part(one: Sequence[str], other: Sequence[str]) -> float:
    """The part of all characters up to the first one in each answer that is not the same."""
    pairs = [zip(*two, strict=False) for two in zip(one, other, strict=True)]
    same = sum(len(list(takewhile(lambda pair: pair[0] == pair[1], letters))) for letters in pairs)
    return same / max(1, sum(map(len, one)))


def rates(ways: dict[str, Any], requests: Sequence[Request], runs: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Each way's tokens a second, and how far its answers are those of the first."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[str]] = {}
    for number in range(runs + 1):  # the first warms up
        for name, way in ways.items():
            rate, texts[name] = way(requests)
            if number:
                found[name].append(rate)
    first = next(iter(texts.values()))
    parity = {
        name: {
            "same": sum(map(str.__eq__, first, mine)),
            "of": len(mine),
            "same_part": round(same_part(first, mine), 4),
        }
        for name, mine in texts.items()
    }
    return {name: statistics.median(taken) for name, taken in found.items()}, parity


def first_token_seconds(model: LlavaVideo, video: Path, frames: int, runs: int) -> dict[str, float]:
    """From the file on disk, with the model loaded: what reading takes of it, too."""
    taken, reading = [], []
    for _ in range(runs + 1):
        start = time.perf_counter()
        medium = read_frames(video, Sampling(frames=frames))
        reading.append(time.perf_counter() - start)
        request = Request((Turn("user", "What happens in this video?", (medium,)),), Generation(max_new_tokens=2))
        taken.append(reading[-1] + model.answer_all([request])[0].usage.first_token_seconds)
    return {"seconds": statistics.median(taken[1:]), "reading_seconds": statistics.median(reading[1:])}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:7B")
    parser.add_argument("--quantize", default="none", choices=["none", "8bit", "4bit"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--new", type=int, default=256, help="tokens of an answer")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--video", type=Path, help="of 720p; made if there is none")
    options = parser.parse_args()
    loaded = load(locate(options.model), Loading(quantize=options.quantize), options.model)
    device = loaded.model.get_input_embeddings().weight.device
    capture = Replayed(cuda_graphs(device)) if device.type == "cuda" else None
    captured = LlavaVideo(options.model, loaded, prefix_reuse=False, capture=capture)
    stepping = LlavaVideo("stepping", loaded, prefix_reuse=False, capture=refuse)
    ways: dict[str, Any] = {
        "captured": lambda requests: ours(captured, requests),
        "stepping": lambda requests: ours(stepping, requests),
        "generate": lambda requests: theirs(loaded, requests),
    }
    copied = copied_bytes_per_second(device)
    result: dict[str, Any] = {
        "model": options.model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "settings": captured.settings,
        "copied_gb_per_second": round(copied / 1e9, 1),
        "rows": {},
    }
    for rows in options.rows:
        requests = [
            Request(
                (Turn("user", "What happens in this video?", (noise(options.frames, row),)),),
                Generation(max_new_tokens=options.new),
            )
            for row in range(rows)
        ]
        speed, parity = rates(ways, requests, options.runs)
        tokens = captured.budget(requests[0]).prompt_tokens + options.new // 2
        weights, cache = read_bytes(loaded.model, tokens, rows)
        step = rows / speed["captured"]
        result["rows"][rows] = {
            "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
            "captured_over_generate": round(speed["captured"] / speed["generate"], 2),
            "share_of_limit": round(weights / copied / step, 3),
            "share_of_limit_with_cache": round((weights + cache) / copied / step, 3),
            "answers_as_captured": parity,
            "was_captured": capture is not None and capture.replays > capture.captures,
        }
        print(rows, result["rows"][rows], file=sys.stderr)
    with tempfile.TemporaryDirectory() as name:
        video = options.video or make_clip(Path(name) / "720p.mp4", range(240), size=(1280, 720))
        for frames in (8, 32):
            first = first_token_seconds(captured, video, frames, options.runs)
            result[f"first_token_{frames}_frames"] = {key: round(value, 4) for key, value in first.items()}
    if device.type == "cuda":
        result["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
