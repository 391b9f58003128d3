"""The parts of gpu.py, each of which runs in a process of its own: `run` does one."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import make_checkpoint
from scenes import OTHER, STILL, VIDEO
from terminal import scene
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from llava_video_cli import (
    Frames,
    Generation,
    Loading,
    Picture,
    Request,
    Sampling,
    Turn,
    VideoInfo,
    join,
    open_model,
    read_frames,
)
from llava_video_cli.checkpoint.config import describe, read_config
from llava_video_cli.checkpoint.random_weights import random_folder
from llava_video_cli.checkpoint.size import Quantized, estimate_memory
from llava_video_cli.demo.world import write_clip
from llava_video_cli.errors import LlvidError
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.quantized import write
from llava_video_cli.model import DType

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
SIDE, FEW_TOKENS, MANY_TOKENS = 336, 16, 80
GB = 1e9


def run(part: str, size: str, clips: int) -> None:
    """Do a part; its results are printed as they come."""
    tell = partial(_tell, part)
    parts: dict[str, Callable[[], None]] = {
        "kernels": lambda: kernels(tell, size),
        "parity": lambda: parity(tell, size),
        "speed": lambda: speed(tell, size),
        "generate": lambda: generate(tell, size),
        "caption": lambda: caption(tell, size, clips),
        "server": lambda: server(tell, size),
        "precisions": lambda: precisions(tell, size),
        "memory": lambda: memory(tell, size),
        "stored": lambda: stored(tell, size),
    }
    parts[part]()


def _tell(part: str, what: str, **figures: Any) -> None:
    rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"part": part, "what": what, **rounded}), flush=True)


def noise(frames: int, seed: int) -> Frames:
    """A clip that was never seen before."""
    images = np.random.default_rng(seed).integers(0, 255, (frames, SIDE, SIDE, 3), dtype=np.uint8)
    info = VideoInfo("noise", float(frames), SIDE, SIDE, 1.0, "none", 0)
    return Frames(images, tuple(map(float, range(frames))), info, Sampling(frames=frames))


def asked(rows: int, frames: int, tokens: int, seed: int = 0) -> list[Request]:
    """As many questions, each on a clip of its own."""
    generation = Generation(max_new_tokens=tokens)
    return [Request((Turn("user", "What happens?", (noise(frames, seed + row),)),), generation) for row in range(rows)]


def seconds(call: Callable[[], object], runs: int = 1) -> float:
    """The median of so many runs."""
    taken = []
    for _ in range(runs):
        _wait()
        began = time.perf_counter()
        call()
        _wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _wait() -> None:
    if HAS_GPU:
        torch.cuda.synchronize()


def kernels(tell: Callable[..., None], size: str) -> None:
    """Versions; each kernel of SDPA on our shapes: whether it runs, the first call in a new thread, and later ones."""
    import bitsandbytes
    import transformers

    tell(
        "versions", torch=torch.__version__, transformers=transformers.__version__, python=sys.version.split()[0],
        bitsandbytes=bitsandbytes.__version__, cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
        card=torch.cuda.get_device_name() if HAS_GPU else None, size=size,
        driver=_smi("--query-gpu=driver_version,memory.total,compute_mode"),
        architectures=torch.cuda.get_arch_list(),
    )  # fmt: skip
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }  # fmt: skip
    scale = 1 if HAS_GPU else 16  # the CPU only shows that it works
    for rows, queries, keys, masked in (
        (1, 1, 1200, False), (1, 1, 1200, True), (1, 1, 4700, True), (64, 1, 1200, True), (1, 1200, 1200, False),
        (8, 1200, 1200, True),
    ):  # fmt: skip
        shape = f"{rows} rows, {queries} queries, {keys} keys, {'a mask' if masked else 'no mask'}"
        heads = 32 // scale
        query = torch.randn(rows, heads, max(1, queries // scale), 128, device=DEVICE, dtype=DTYPE)
        key = torch.randn(rows, heads, keys // scale, 128, device=DEVICE, dtype=DTYPE)
        mask = torch.ones(rows, 1, query.shape[2], key.shape[2], device=DEVICE, dtype=torch.bool) if masked else None
        if mask is not None:
            mask[-1, :, :, : key.shape[2] // 2] = False
        found: dict[str, Any] = {}
        for cudnn in (False, True) if HAS_GPU else ():
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            found["chosen_with_cudnn" if cudnn else "chosen"] = _longest_kernel(
                partial(functional.scaled_dot_product_attention, query, key, key, mask)
            )
        for name, backend in backends.items():
            found |= _kernel(name, backend, partial(functional.scaled_dot_product_attention, query, key, key, mask))
        tell(shape, **found)
    query = torch.randn(2, 4, 8, 64, device=DEVICE, dtype=DTYPE)
    blind = torch.ones(2, 1, 8, 8, device=DEVICE, dtype=torch.bool).tril()
    blind[1, :, :4] = False  # these queries see nothing, as those of padding
    nan: dict[str, bool | None] = {}
    for name, backend in backends.items():
        try:
            with sdpa_kernel(backend):
                nan[name] = bool(functional.scaled_dot_product_attention(query, query, query, blind).isnan().any())
        except RuntimeError:
            nan[name] = None
    tell("NaN where a query sees nothing", **nan)


def _longest_kernel(call: Callable[[], object]) -> str:
    """The name of the kernel in which the card spends most of a call."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        _wait()
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    return events[0].key[:80] if events else ""


def _kernel(name: str, backend: SDPBackend, call: Callable[[], torch.Tensor]) -> dict[str, Any]:
    figures: dict[str, Any] = {}

    def first(kind: str) -> None:
        try:
            with sdpa_kernel(backend), torch.inference_mode():
                figures[f"{name}_{kind}_ms"] = 1000 * seconds(call)
                figures[f"{name}_ms"] = 1000 * seconds(lambda: [call() for _ in range(20)], 3) / 20
        except RuntimeError:
            figures[f"{name}_ms"] = None

    for kind in ("first", "new_thread"):
        thread = threading.Thread(target=first, args=[kind])
        thread.start()
        thread.join()
    return figures


def parity(tell: Callable[..., None], size: str) -> None:
    """The share of answers in float32 that are the CPU's; and which modules give a NaN or an infinity."""
    media: list[tuple[Frames | Picture, ...]] = [(VIDEO,), (OTHER,), (STILL,), (STILL, VIDEO)]
    requests = [
        Request((Turn("user", text, medium),), Generation(max_new_tokens=40))
        for text in ("What happens?", "Why?")
        for medium in media
    ]
    with tempfile.TemporaryDirectory() as name:
        for layout in ("demo", "vicuna", "mistral", "yi"):
            folder = layout if layout == "demo" else str(make_checkpoint(Path(name) / layout, layout))
            cpu, card = (open_model(folder, Loading(device=str(kind), dtype="float32")) for kind in ("cpu", DEVICE))
            wanted = [join(cpu.stream(request)).text for request in requests]
            alone = [join(card.stream(request)).text for request in requests]
            together = [answer.text for answer in card.answer_all(requests)]
            same = [sum(a == b for a, b in zip(wanted, got, strict=True)) for got in (alone, together)]
            tell(f"answers of {layout} as on the CPU", of=len(requests), alone=same[0], together=same[1])
    folder_7b = random_folder(f"random:{size}")
    assert folder_7b is not None
    dtypes: tuple[DType, ...] = ("bfloat16", "float16") if HAS_GPU else ("float32",)
    for dtype in dtypes:
        model = load(folder_7b, Loading(quantize="none", dtype=dtype)).model
        bad: list[str] = []

        def watch(name: str, bad: list[str] = bad) -> Callable[..., None]:
            def look(_: object, __: object, output: Any) -> None:
                values = output[0] if isinstance(output, tuple) else output
                if isinstance(values, torch.Tensor) and not bool(values.isfinite().all()):
                    bad.append(name)

            return look

        for module_name, module in model.named_modules():
            module.register_forward_hook(watch(module_name))
        ids = torch.randint(300, 400, (2, 64), device=DEVICE)
        mask = torch.ones_like(ids)
        mask[1, :40] = 0
        with torch.inference_mode():
            model(input_ids=ids, attention_mask=mask)
            model.get_video_features(_pixels(model, 2))
        tell(f"modules with a NaN or an infinity in {dtype}", modules=len(bad), first=bad[:3])
        del model


@contextmanager
def no_graphs() -> Iterator[None]:
    """Make each capture fail, so that every step is launched by the host."""

    class Refused:
        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError("no capture: this measures stepping")

    real = torch.cuda.graph
    vars(torch.cuda)["graph"] = Refused
    try:
        yield
    finally:
        vars(torch.cuda)["graph"] = real


def speed(tell: Callable[..., None], size: str) -> None:
    """Tokens a second behind the first, the first token, and where its time goes."""
    sizes = [(1, 8), (8, 8), (1, 32), (64, 8), (8, 32)] if HAS_GPU else [(1, 2), (8, 2)]
    ways = {"captured": ("0", False), "stepping": ("0", True), "captured, cuDNN's attention": ("1", False)}
    for way, (cudnn, refused) in ways.items():
        os.environ["LLVID_CUDNN_ATTENTION"] = cudnn
        with no_graphs() if refused else _nothing():
            model = open_model(f"random:{size}", Loading(prefix_reuse=False, frames=32))
            for rows, frames in sizes if way == "captured" else sizes[:2]:
                tell(f"{way}: {rows} rows, {frames} frames", **_rates(model, rows, frames))
            if way == "captured":
                _stages(tell, model)
            del model
            if HAS_GPU:
                torch.cuda.empty_cache()
    _parts_of_the_first_token(tell, size)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _rates(model: Any, rows: int, frames: int) -> dict[str, Any]:
    """Tokens a second behind the first: the time of many tokens less that of few, on the same clips."""
    few, many = (asked(rows, frames, tokens) for tokens in (FEW_TOKENS, MANY_TOKENS))
    first = model.answer_all(few)  # encodes the clips, captures what is captured
    model.answer_all(many)
    taken = seconds(lambda: model.answer_all(few)), seconds(lambda: model.answer_all(many))
    return {
        "tokens_per_second": rows * (MANY_TOKENS - FEW_TOKENS) / max(1e-9, taken[1] - taken[0]),
        "videos_per_second": rows / taken[1],
        "first_token_seconds": first[0].usage.first_token_seconds,
        "peak_gb": first[-1].usage.peak_memory_bytes / GB,
    }


def _stages(tell: Callable[..., None], model: Any) -> None:
    """From a 720p file to the first token, the second time it is asked of another file."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(2):
            path = Path(name) / f"{number}.mp4"
            write_clip(path, scene(width=1280, height=720, duration_seconds=4.0, seed=number))
            for frames in (8, 32):
                began = time.perf_counter()
                clip = read_frames(path, Sampling(frames=frames))
                read = time.perf_counter() - began
                for image in clip.images:
                    model.shrink(image)
                resized = time.perf_counter() - began - read
                answer = join(model.stream(Request((Turn("user", "What?", (clip,)),), Generation(max_new_tokens=2))))
                if number:
                    tell(
                        f"first token, {frames} frames of 720p",
                        read_seconds=read,
                        resize_seconds=resized,
                        model_seconds=answer.usage.first_token_seconds,
                    )


def _parts_of_the_first_token(tell: Callable[..., None], size: str) -> None:
    """What the vision tower and the prefill take on the device, by transformers' own modules."""
    folder = random_folder(f"random:{size}")
    assert folder is not None
    frame_tokens = describe(read_config(folder)).rates.frame_tokens
    model = load(folder, Loading(quantize="none")).model
    with torch.inference_mode():
        for frames in (8, 32) if HAS_GPU else (2,):
            ids = torch.full((1, frames * frame_tokens + 60), 300, device=DEVICE)
            encode = partial(model.get_video_features, _pixels(model, frames))
            prefill = partial(model, input_ids=ids, logits_to_keep=1)
            for call in (encode, prefill):
                call()
            figures = {"encode_seconds": seconds(encode, 3), "prefill_seconds": seconds(prefill, 3)}
            tell(f"on the device, {frames} frames", **figures)


def _pixels(model: Any, frames: int) -> torch.Tensor:
    side = model.config.vision_config.image_size
    return torch.randn(1, frames, 3, side, side, device=DEVICE, dtype=model.dtype)


def generate(tell: Callable[..., None], size: str) -> None:
    """Tokens a second of transformers' own generate on the same weights: plain, then with its compiled static cache."""
    folder = random_folder(f"random:{size}")
    assert folder is not None
    loaded = load(folder, Loading(quantize="none", frames=32))
    frames = 8 if HAS_GPU else 2
    for way in ("dynamic", "static"):
        for rows in (1, 8):
            clips = [noise(frames, row).images for row in range(rows)]
            text = ["USER: <video>\nWhat happens? ASSISTANT:"] * rows
            inputs = loaded.processor(text=text, videos=clips, return_tensors="pt", padding=True)
            inputs = inputs.to(loaded.model.device, loaded.model.dtype)

            def answer(
                tokens: int, inputs: Any = inputs, cache: str | None = None if way == "dynamic" else way
            ) -> None:
                options = {"cache_implementation": cache} if cache else {}
                loaded.model.generate(
                    **inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, **options
                )

            first = seconds(partial(answer, MANY_TOKENS))  # it compiles
            answer(FEW_TOKENS)
            taken = seconds(partial(answer, FEW_TOKENS)), seconds(partial(answer, MANY_TOKENS))
            tell(
                f"{way} cache: {rows} rows, {frames} frames",
                tokens_per_second=rows * (MANY_TOKENS - FEW_TOKENS) / max(1e-9, taken[1] - taken[0]),
                videos_per_second=rows / taken[1],
                first_call_seconds=first,
            )


def _smi(query: str) -> str | None:
    """What nvidia-smi says in one line."""
    try:
        done = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.partition("\n")[0] or None


@contextmanager
def busy_share() -> Iterator[dict[str, Any]]:
    """Fill in the share of the time in which the GPU had work, asked five times a second."""
    shares: list[int] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.2):
            value = _smi("--query-gpu=utilization.gpu")
            shares.extend([int(value)] if value and value.isdecimal() else [])

    thread = threading.Thread(target=look)
    thread.start()
    result: dict[str, Any] = {"gpu_busy_percent": None}
    try:
        yield result
    finally:
        is_over.set()
        thread.join()
        if shares:
            result["gpu_busy_percent"] = statistics.mean(shares)
            result["gpu_busy_while_at_work_percent"] = statistics.mean([each for each in shares if each] or [0])


def caption(tell: Callable[..., None], size: str, count: int) -> None:
    """A folder of clips through the command line: 8 frames, 64 tokens; and with a tenth, for what starting takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        folder.mkdir()
        for number in range(count):
            if number < 16:
                write_clip(folder / f"{number}.mp4", scene(width=640, height=480, duration_seconds=4.0, seed=number))
            else:  # another file with the same pictures
                (folder / f"{number}.mp4").write_bytes((folder / f"{number % 16}.mp4").read_bytes())
        few = sorted(folder.iterdir())[: max(1, count // 10)]
        command = [sys.executable, "-m", "llava_video_cli", "caption", "-m", f"random:{size}", "-q", "--frames", "8"]
        command += ["--max-new-tokens", "64", "-o"]
        taken: list[float] = []
        for paths in (list(map(str, few)), [str(folder)]):
            output = Path(name) / f"{len(taken)}.jsonl"
            with busy_share() as busy:
                began = time.perf_counter()
                subprocess.run([*command, str(output), *paths], check=True)
                taken.append(time.perf_counter() - began)
            records = len(output.read_text(encoding="utf-8").splitlines())
            tell(f"{records} clips", seconds=taken[-1], **busy)
        more = count - len(few)
        tell("without starting", videos_per_second=more / max(1e-9, taken[1] - taken[0]))


def server(tell: Callable[..., None], size: str) -> None:
    """1 and 16 clients, each asking again as soon as it has its answer of 32 tokens."""
    import serve

    options = ["-m", f"random:{size}", "--max-new-tokens", "32"]
    with tempfile.TemporaryDirectory() as name, serve.server(*options) as (_, port):
        requests = serve.bodies(Path(name), 32)
        serve.load(port, requests, None, count=16)
        for clients in (1, 16):
            span = 8.0 if HAS_GPU else 4.0
            with busy_share() as busy:
                began = time.perf_counter()
                waits = serve.load(port, requests[:clients], span)
                rate = len(waits) / (time.perf_counter() - began)
            tell(
                f"{clients} clients", answers_per_second=rate, p50_seconds=statistics.median(waits),
                p95_seconds=statistics.quantiles(waits, n=20)[-1] if len(waits) > 1 else None, **busy,
            )  # fmt: skip


def precisions(tell: Callable[..., None], size: str) -> None:
    """Tokens a second, and the peak over what was estimated before loading, in each precision."""
    folder = random_folder(f"random:{size}")
    assert folder is not None
    checkpoint, frames = describe(read_config(folder)), 8 if HAS_GPU else 2
    kinds: tuple[Quantized, ...] = ("4bit", "8bit", "none")
    for quantize in kinds:
        model = open_model(f"random:{size}", Loading(quantize=quantize, frames=frames, prefix_reuse=False))
        (request,) = asked(1, frames, MANY_TOKENS, seed=99)
        answer = join(model.stream(request))
        tokens = answer.usage.prompt_tokens + MANY_TOKENS
        need = estimate_memory(checkpoint, quantize, model.settings["dtype"], tokens, frames)
        tell(
            f"{quantize}: memory", peak_gb=answer.usage.peak_memory_bytes / GB, estimated_gb=need.total_bytes / GB,
            peak_over_estimate=answer.usage.peak_memory_bytes / need.total_bytes,
        )  # fmt: skip
        for rows in (1, 8):
            tell(f"{quantize}: {rows} rows, {frames} frames", **_rates(model, rows, frames))
        del model
        if HAS_GPU:
            torch.cuda.empty_cache()


def memory(tell: Callable[..., None], size: str) -> None:
    """Open with so much free; then take most of what is left away, and ask 64 at a time: all have to be answered."""
    for free_gb in (24, 12, 8) if HAS_GPU else (None,):
        ballast = None
        if free_gb is not None:
            free, _ = torch.cuda.mem_get_info()
            ballast = torch.empty(max(0, free - free_gb * 10**9), dtype=torch.uint8, device="cuda")
        try:
            model = open_model(f"random:{size}", Loading(frames=8, prefix_reuse=False))
            answers = model.answer_all(asked(64 if HAS_GPU else 8, 8 if HAS_GPU else 2, FEW_TOKENS))
            told: dict[str, Any] = {"answers": len(answers), "quantize": model.settings["quantize"]}
            told["notes"] = list(model.notes)
            del model, answers
        except LlvidError as error:
            told = {"refused": str(error), "hint": error.hint}
        tell(f"64 requests with {free_gb or 'all the'} GB free", **told)
        del ballast
        if HAS_GPU:
            torch.cuda.empty_cache()


def stored(tell: Callable[..., None], size: str) -> None:
    """Seconds from a folder to a model: stored in 4 bits, over random weights that are quantized while loading."""
    plain = random_folder(f"random:{size}")
    assert plain is not None
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        loaded = load(plain, Loading(quantize="4bit"))
        quantized = time.perf_counter() - began
        written = write(loaded, plain, Path(name) / "4bit")
        del loaded
        began = time.perf_counter()
        model = open_model(f"{name}/4bit", Loading())
        tell(
            "4 bits", quantize_seconds=quantized, stored_seconds=time.perf_counter() - began, stored_gb=written / GB,
            answer=len(join(model.stream(asked(1, 2, FEW_TOKENS)[0])).text),
        )  # fmt: skip
