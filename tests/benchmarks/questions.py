"""What ten questions about one video cost, against the answers alone and against transformers' documented way.

    ../shared/tools/make_videos.sh /tmp/videos small
    python tests/benchmarks/questions.py --video /tmp/videos/h264_720p_10s.mp4 [--runs 5]

A checkpoint of about 100 M random parameters (32 frames of 64 tokens), made on the spot; float32, greedy, 16 new tokens
an answer, which have to be the same in all ways. `alone`: transformers' generate on a cache of the video, filled before
the clock runs. `llvid`: `stream`, after a first question that paid for the video. `documented`: the processor and
generate for each question, on frames that were decoded before the clock runs. They take turns within each round. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from checkpoints import make_checkpoint
from transformers import DynamicCache

from llava_video_cli import Frames, Generation, Loading, Request, Sampling, Turn, join, open_model, read_frames
from llava_video_cli.inference.decode_step import cache_name
from llava_video_cli.inference.loader import Loaded, load
from llava_video_cli.inference.video_model import VideoModel

TEXT = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
VISION = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
NEW_TOKENS, FRAMES = 16, 32
QUESTIONS = tuple(f"{word} is {what}?" for word in ("What", "Where") for what in ("it", "she", "red", "cut", "up"))


class Bare:
    """The same weights through transformers alone."""

    def __init__(self, loaded: Loaded, frames: Frames) -> None:
        self._model, self._processor, self._frames = loaded.model, loaded.processor, frames

    @torch.inference_mode()
    def documented(self, question: str) -> list[int]:
        """The processor and generate, anew."""
        inputs = self._inputs(question)
        return self._new(inputs["input_ids"], self._generate(**inputs))

    @torch.inference_mode()
    def alone(self, question: str, video: tuple[Any, int]) -> list[int]:
        """Generate on a cache of the video, from ids that the clock does not count."""
        cache, known = video
        ids = self._inputs(question)["input_ids"]
        cache.crop(known - cache.get_seq_length())
        start = time.perf_counter()
        output = self._generate(input_ids=ids, **{cache_name(self._model): cache})
        self.seconds += time.perf_counter() - start
        return self._new(ids, output)

    @torch.inference_mode()
    def video(self) -> tuple[Any, int]:
        """A cache of all that the questions have in common."""
        inputs = self._inputs(QUESTIONS[0])
        known = int((inputs["input_ids"][0] == self._model.config.video_token_id).nonzero()[-1]) + 1
        cache = DynamicCache(config=self._model.config)
        short = {name: value[:, :known] if value.dim() == 2 else value for name, value in inputs.items()}
        self._model(**short, use_cache=True, **{cache_name(self._model): cache})
        self.seconds = 0.0
        return cache, known

    def _inputs(self, question: str) -> Any:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self._processor(text=text, videos=[self._frames.images], return_tensors="pt", do_sample_frames=False)

    def _generate(self, **inputs: Any) -> Any:
        return self._model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)

    def _new(self, ids: torch.Tensor, output: torch.Tensor) -> list[int]:
        found: list[int] = output[0, ids.shape[1] :].tolist()
        return found


def request(frames: Frames, question: str) -> Request:
    """A question as ours."""
    return Request((Turn("user", question, (frames,)),), Generation(max_new_tokens=NEW_TOKENS))


def first_words(folder: Path, video: Path) -> tuple[float, float]:
    """Seconds to the first token of the first question, reading and encoding included, and of the second."""
    model = open_model(str(folder))
    join(model.stream(Request((Turn("user", "Warm?"),), Generation(max_new_tokens=2))))
    start = time.perf_counter()
    frames = read_frames(video, Sampling(frames=FRAMES))
    reading = time.perf_counter() - start
    first = join(model.stream(request(frames, QUESTIONS[0]))).usage
    second = join(model.stream(request(frames, QUESTIONS[1]))).usage
    return reading + first.first_token_seconds, second.first_token_seconds


def timed(call: Callable[[], list[str]], taken: list[float]) -> list[str]:
    """The answers; what they took is appended."""
    start = time.perf_counter()
    answers = call()
    taken.append(time.perf_counter() - start)
    return answers


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        text = TEXT | {"num_key_value_heads": 12}
        folder = make_checkpoint(Path(name), "vicuna", text=text, vision=VISION | {"image_size": 224})
        loaded = load(folder, Loading())
        model = VideoModel(str(folder), loaded)
        parameters = sum(weight.numel() for weight in loaded.model.parameters())
        frames = read_frames(options.video, Sampling(frames=FRAMES))
        bare, decode = Bare(loaded, frames), partial(loaded.processor.tokenizer.decode, skip_special_tokens=True)
        seconds: dict[str, list[float]] = {"alone": [], "llvid": [], "documented": []}
        words = []
        for _ in range(options.runs):
            video = bare.video()
            alone = [decode(bare.alone(question, video)).strip() for question in QUESTIONS]
            seconds["alone"].append(bare.seconds)
            join(model.stream(request(frames, "Warm?")))
            ours = timed(lambda: [join(model.stream(request(frames, q))).text for q in QUESTIONS], seconds["llvid"])
            theirs = timed(
                lambda: [decode(bare.documented(q)).strip() for q in QUESTIONS],
                seconds["documented"],
            )
            assert ours == theirs == alone, [*zip(ours, theirs, alone, strict=True)]
            words.append(first_words(folder, options.video))
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    first, second = (statistics.median(column) for column in zip(*words, strict=True))
    result = {
        "parameters": parameters,
        "prompt_tokens": model.budget(request(frames, QUESTIONS[0])).prompt_tokens,
        "seconds": {name: round(median, 3) for name, median in medians.items()},
        "llvid_over_alone": round(medians["llvid"] / medians["alone"], 3),
        "documented_over_llvid": round(medians["documented"] / medians["llvid"], 2),
        "first_token_seconds": {"first": round(first, 3), "second": round(second, 3)},
        "second_over_first": round(second / first, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
