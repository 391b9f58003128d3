"""What loading takes of a CPU's memory, and of time: in each precision, and stored in 4 bits.

    python tests/benchmarks/precision_size.py [--size 1B] [--runs 3]

A checkpoint with random weights is stored in bfloat16, as the published ones are in 16 bits, and in 4 bits. Each is
then loaded in a process of its own, which has loaded a tiny one in the same way before, so that libraries don't count.
`peak` is the most that lay in memory from there on, pages of files included, until all weights had been looked at, over
the bytes of the weights as they are held (with their scales, if they are quantized); wanted: at most 1.15. `linear` is
what the language model's linear layers hold over their bfloat16 bytes; wanted in 4 bits: at most 0.32. `transformers`
is its own `from_pretrained` on the same folder. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16", "quantize": "none"},
    "float32": {"dtype": "float32", "quantize": "none"},
    "float16": {"dtype": "float16", "quantize": "none"},
    "8bit": {"dtype": "bfloat16", "quantize": "8bit"},
    "4bit": {"dtype": "bfloat16", "quantize": "4bit"},
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1B")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--load", nargs=4, metavar=("FOLDER", "TINY", "WAY", "HOW"), help="one load, for this script")
    options = parser.parse_args()
    if options.load:
        folder, tiny, way, how = options.load
        print(json.dumps(load(Path(folder), Path(tiny), WAYS[way], how)))
        return
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        made = [sys.executable, "-c", MAKE, name, options.size]
        subprocess.run(made, check=True)
        results: dict[str, dict[str, list[float]]] = {}
        for _ in range(options.runs):
            for kind, (stored, way, how) in plans().items():
                command = [sys.executable, __file__, "--load", str(base / options.size / stored)]
                command += [str(base / "tiny" / stored), way, how]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                for key, value in json.loads(done.stdout.splitlines()[-1]).items():
                    results.setdefault(kind, {}).setdefault(key, []).append(value)
    medians = {
        kind: {key: round(statistics.median(values), 3) for key, values in found.items()}
        for kind, found in results.items()
    }
    for kind, found in medians.items():
        print(f"{kind:24}", found, file=sys.stderr)
    stored_gain = medians["4bit"]["seconds"] / medians["stored in 4bit"]["seconds"]
    print(json.dumps({"size": options.size, "runs": options.runs, **medians, "stored_gain": round(stored_gain, 2)}))


def plans() -> dict[str, tuple[str, str, str]]:
    """Each way's name: the folder, the precision, and who loads."""
    ours = {way: ("bfloat16", way, "llvid") for way in WAYS}
    theirs = {f"{way}, transformers": ("bfloat16", way, "transformers") for way in WAYS}
    return ours | {"stored in 4bit": ("4bit", "4bit", "llvid")} | theirs


MAKE = """
import sys
from pathlib import Path
from llava_video_cli import Loading
from llava_video_cli.inference.loader import load
from llava_video_cli.checkpoint.random_weights import random_folder
from llava_video_cli.inference.quantized import load_quantized, write
for size in {"tiny", sys.argv[2]}:
    base = Path(sys.argv[1]) / size
    plain = random_folder(f"random:{size}")
    loaded = load(plain, Loading(quantize="none", dtype="bfloat16", device="cpu"))
    write(loaded, plain, base / "bfloat16")
    del loaded
    write(load_quantized(base / "bfloat16", "4bit", size), base / "bfloat16", base / "4bit")
"""


def load(folder: Path, tiny: Path, way: dict[str, Any], how: str) -> dict[str, float]:
    """Load as is wanted; return seconds and ratios."""
    from llava_video_cli import Loading
    from llava_video_cli.inference.loader import load as ours

    def loaded(of: Path) -> Any:
        if how == "llvid":
            return ours(of, Loading(device="cpu", **way)).model
        return documented(of, way)

    look_at(loaded(tiny))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    began = time.perf_counter()
    model = loaded(folder)
    look_at(model)
    seconds = time.perf_counter() - began
    held, linear, plain = sizes(model)
    return {
        "seconds": seconds,
        "held_mb": held / 1e6,
        "peak": (status("VmHWM") - before) / held,
        "linear": linear / plain,
    }


def documented(folder: Path, way: dict[str, Any]) -> Any:
    """Load as transformers documents it."""
    import torch
    from transformers import BitsAndBytesConfig, LlavaNextVideoForConditionalGeneration

    dtype = getattr(torch, way["dtype"])
    skipped = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    kinds = {
        "none": None,
        "8bit": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped),
        "4bit": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        ),
    }
    return LlavaNextVideoForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, quantization_config=kinds[way["quantize"]]
    )


def look_at(model: Any) -> None:
    """Touch every page of all weights: what is mapped counts once it is used."""
    import torch

    for weight in model.parameters():
        flat = weight.detach().reshape(-1).view(torch.uint8)
        int(flat[::4096].sum())


def sizes(model: Any) -> tuple[int, int, int]:
    """Return the bytes of all weights, of the language model's linear layers, and of those in bfloat16."""
    import torch

    held, linear, plain = 0, 0, 0
    for name, module in model.named_modules():
        own = sum(nbytes(weight) for weight in module.parameters(recurse=False))
        held += own
        if "language_model" in name and isinstance(module, torch.nn.Linear):
            linear += own
            plain += 2 * module.in_features * module.out_features
    return held, linear, plain


def nbytes(weight: Any) -> int:
    """Return the bytes of a weight with the scales that its quantization has beside it."""
    found = weight.numel() * weight.element_size()
    for owner in (getattr(weight, "quant_state", None), getattr(getattr(weight, "quant_state", None), "state2", None)):
        scales = [getattr(owner, name, None) for name in ("absmax", "code")]
        found += sum(scale.numel() * scale.element_size() for scale in scales if scale is not None)
    scale = getattr(weight, "SCB", None)
    return int(found + (scale.numel() * scale.element_size() if scale is not None else 0))


def status(name: str) -> int:
    """Return bytes of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
