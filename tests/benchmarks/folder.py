"""How fast a folder is captioned, against the straightforward loop: transformers' documented way, a video at a time.

    ../shared/tools/make_videos.sh /tmp/videos small
    python tests/benchmarks/folder.py --videos /tmp/videos --height 480 --clips 200
    python tests/benchmarks/folder.py --videos /tmp/videos --height 720 --clips 60

Both have the demo checkpoint loaded, take 8 frames and write a line of JSON a video; they take turns, and their
captions must be the same. The clips are cut out of base.mkv, 5 seconds each, by Debian's ffmpeg. Beside them, `floor`
is what FFmpeg alone takes, on all cores, to decode the pictures that others refer to: no exact reader that uses it can
decode fewer, as those are needed for the last of the frames. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `llvid caption` does, before torch is imported
import av
import torch
from peers import CORES, snippet

from llava_video_cli import Loading, load_preset
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.inference.loader import Loaded, load
from llava_video_cli.inference.video_model import VideoModel
from llava_video_cli.runs.answers import RunPace, run
from llava_video_cli.runs.caption import CaptionJob, Task
from llava_video_cli.runs.ledger import Ledger
from llava_video_cli.runs.record import Record, settings_values

DISTINCT, SECONDS = 40, 5.0


def clips(base: Path, folder: Path, height: int, count: int) -> list[Path]:
    """Cut the clips, `DISTINCT` different ones, and repeat them under other names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"clip{number:04d}.mp4"
        paths.append(path)
        if path.exists():
            continue
        if number >= DISTINCT:
            shutil.copyfile(paths[number % DISTINCT], path)
            continue
        start = 1.2 * number
        command = ["ffmpeg", "-loglevel", "error", "-nostdin", "-ss", str(start), "-i", str(base), "-t", str(SECONDS)]
        command += ["-vf", f"scale=-2:{height}", "-c:v", "libx264", "-preset", "medium", "-crf", "23", str(path)]
        subprocess.run(command, check=True)
    return paths


class Loop:
    """The documented way."""

    def __init__(self, loaded: Loaded, prompt: str, count: int, max_new_tokens: int) -> None:
        self._model, self._processor = loaded.model, loaded.processor
        self._count, self._max_new_tokens = count, max_new_tokens
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        conversation = [{"role": "user", "content": content}]
        self._prompt = self._processor.apply_chat_template(conversation, add_generation_prompt=True)

    @torch.inference_mode()
    def caption(self, path: Path) -> str:
        """Decode, process, generate."""
        clip = snippet(str(path), self._count)
        inputs = self._processor(text=self._prompt, videos=clip, return_tensors="pt")
        output = self._model.generate(**inputs, max_new_tokens=self._max_new_tokens, do_sample=False)
        new = output[0][inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(new, skip_special_tokens=True)).strip()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    folder = options.videos / f"clips{options.height}"
    paths = clips(options.videos / "base.mkv", folder, options.height, options.clips)
    loaded = load(CHECKPOINT, Loading())
    model = VideoModel("demo", loaded)
    preset = load_preset("demo")
    loop = Loop(loaded, preset.prompt, preset.sampling.frames, preset.generation.max_new_tokens)
    for path in paths[:3]:
        loop.caption(path)  # whatever is done only once
    seconds: dict[str, list[float]] = {"loop": [], "llvid": [], "floor": []}
    pace = RunPace()
    for _ in range(options.runs):
        start = time.perf_counter()
        theirs = _write_loop(loop, paths)
        seconds["loop"].append(time.perf_counter() - start)
        pace = RunPace()
        start = time.perf_counter()
        ours = _write_llvid(model, preset, paths, pace)
        seconds["llvid"].append(time.perf_counter() - start)
        start = time.perf_counter()
        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(_decode_references, paths))
        seconds["floor"].append(time.perf_counter() - start)
        assert ours == theirs, {k: (ours[k], theirs[k]) for k in ours if ours[k] != theirs[k]}
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    result: dict[str, Any] = {
        "height": options.height,
        "clips": len(paths),
        "videos_per_second": {name: round(len(paths) / median, 2) for name, median in medians.items()},
        "ratio": round(medians["loop"] / medians["llvid"], 2),
        "ratios": [round(a / b, 2) for a, b in zip(seconds["loop"], seconds["llvid"], strict=True)],
        "ratio_of_the_floor": round(medians["loop"] / medians["floor"], 2),
        "waiting_seconds": round(pace.waiting_seconds, 2),
        "generating_seconds": round(pace.generating_seconds, 2),
    }
    for name, median in medians.items():
        print(f"{name:6s} {median:7.2f} s, {len(paths) / median:6.2f} videos/s")
    print(json.dumps(result))


def _decode_references(path: Path) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.skip_frame = "NONREF"
        for _ in container.decode(stream):
            pass


def _write_loop(loop: Loop, paths: list[Path]) -> dict[str, str]:
    found = {}
    with tempfile.TemporaryFile("w") as file:
        for path in paths:
            found[path.name] = loop.caption(path)
            file.write(json.dumps({"video_path": str(path), "caption": found[path.name]}) + "\n")
            file.flush()
    return found


def _write_llvid(model: VideoModel, preset: Any, paths: list[Path], pace: RunPace) -> dict[str, str]:
    task, settings, found = Task(preset), settings_values(model, preset), {}
    jobs = [CaptionJob(str(path), task.key(path.name, path.stat()), task, settings, model.budget) for path in paths]
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "out.jsonl") as ledger:
        for outcome in run(jobs, model, pace=pace):
            assert isinstance(outcome, Record)
            ledger.append(outcome)
            found[Path(outcome.path).name] = outcome.text
    return found


if __name__ == "__main__":
    main()
